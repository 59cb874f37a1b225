"""The fused operations of a step, composed of separate ones, for backends that have no kernels for them.

Legend: B rows, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...common.fvu import sum_of_squares
from ..pairs import Pairs


def reconstruct(
    decode: Callable[[Pairs, Tensor], Tensor],
    sddmm: Callable[[Pairs, Tensor, Tensor], Tensor],
    codes: Pairs,
    W_dec: Tensor,
    target: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`.protocol.Backend.reconstruct`."""
    error = decode(codes, W_dec).sub_(target)
    return error, sddmm(codes, error, W_dec).mul_(scale), sum_of_squares(error)


def weight_gradients(
    accumulate_by_latent: Callable[[Pairs, Tensor, Tensor, Tensor], None],
    sum_per_latent: Callable[[Pairs, Tensor], Tensor],
    codes: Pairs,
    d_pre: Tensor,
    x_centered: Tensor,
    error: Tensor,
    scale: float,
    W_enc_grad: Tensor,
    W_dec_grad: Tensor,
) -> Tensor:
    """See :meth:`.protocol.Backend.weight_gradients`."""
    accumulate_by_latent(codes, codes.value * scale, error, W_dec_grad)
    accumulate_by_latent(codes, d_pre, x_centered, W_enc_grad)
    return sum_per_latent(codes, d_pre)


def count_active(codes: Pairs) -> tuple[Tensor, Tensor]:
    """See :meth:`.protocol.Backend.count_active`."""
    active = codes.keep(codes.value != 0)
    return active.row_ptr.diff(), active.count_per_latent()


def global_norm(
    gradient_norm: Callable[[Tensor, Tensor | None], Tensor],
    gradients: Sequence[tuple[Tensor, Tensor | None]],
) -> Tensor:
    """See :meth:`.protocol.Backend.global_norm`."""
    norms = [gradient_norm(gradient, unit_rows_of) for gradient, unit_rows_of in gradients]
    return torch.stack(norms).square().sum().sqrt()


def clip(figures: Tensor, limit: float | None, unsound: Tensor) -> Tensor:
    """See :meth:`.protocol.Backend.clip`."""
    unsound += (figures * 0).sum()  # NaN if one of them is not finite
    scale = 1.0 if limit is None else (limit / (figures[-1] + 1e-6)).clamp_max(1.0)
    return scale + unsound
