"""The fused operations of a step, composed of separate ones, for backends that have no kernels for them.

Legend: B rows, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...common.fvu import sum_of_squares
from ..pairs import Pairs
from .plain.products import total


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


def reconstruct_nested(
    decode: Callable[[Pairs, Tensor], Tensor],
    sddmm: Callable[[Pairs, Tensor, Tensor], Tensor],
    rings: Pairs,
    W_dec: Tensor,
    target: Tensor,
    weights: Sequence[float],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :meth:`.protocol.Backend.reconstruct_nested`."""
    slopes = decode(rings, W_dec)  # first the errors
    errors = slopes.view(len(target), len(weights), W_dec.shape[1]).unbind(1)
    errors[0].sub_(target)
    for before, error in pairwise(errors):
        error.add_(before)
    squared_errors = torch.stack([sum_of_squares(error) for error in errors])
    whole = errors[-1].clone()
    for weight, error in zip(weights, errors, strict=True):
        error *= weight * scale
    for after, error in pairwise(reversed(errors)):
        error.add_(after)
    return whole, slopes, sddmm(rings, slopes, W_dec), squared_errors


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
    codes = codes.join_rows(len(x_centered))
    accumulate_by_latent(codes, d_pre, x_centered, W_enc_grad)
    return sum_per_latent(codes, d_pre)


def count_active(codes: Pairs) -> tuple[Tensor, Tensor]:
    """See :meth:`.protocol.Backend.count_active`."""
    active = codes.keep(codes.value != 0)
    return active.row_ptr.diff(), active.count_per_latent()


def sum_rows(pre: Tensor, *, positive: bool, entropy: bool) -> Tensor:
    """See :meth:`.protocol.Backend.sum_rows`."""
    z = pre.clamp(min=0.0) if positive else pre
    if entropy:
        return torch.stack([z.sum(0), torch.xlogy(z, z).sum(0)])
    return z.square().sum(0, keepdim=True)


def gradient_norm(
    row_squares: Callable[[Tensor, Tensor | None], Tensor],
    gradient: Tensor,
    unit_rows_of: Tensor | None = None,
) -> Tensor:
    """See :meth:`.protocol.Backend.gradient_norm`."""
    return total(row_squares(gradient, unit_rows_of)).sqrt()


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
