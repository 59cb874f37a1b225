"""What Probabilistic TopK ranks: random gates beside the size of pre-activations. The reference, in torch.

Legend: b rows of a block, F all latents, n latents of this process.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .plain.products import part_of

EPSILON = 1e-5  # of LayerNorm

Draw = tuple[int, int, int, int]
"""Random numbers of a block: the seed, the batch, its first row, and the first latent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gates:
    """How gates are ranked: see :class:`...variants.probabilistic_topk.ProbabilisticTopK`.

    Attributes:
        beta: float32 [], on the device. magnitude_weight: λ.
        layer_norm: the logits are the normalized pre-activations, else these themselves.
        draw: the random numbers that are added; None adds none.
    """

    beta: Tensor
    magnitude_weight: float
    layer_norm: bool
    draw: Draw | None


def rank_gates(
    random_uniform: Callable[..., Tensor],
    a: Tensor,
    gates: Gates,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """See :meth:`.protocol.Backend.rank_gates`; ``normalize`` is :func:`layer_norm` of all processes."""
    beta, weight = gates.beta, gates.magnitude_weight
    t = (normalize or layer_norm)(a) if gates.layer_norm else a.clone()
    if gates.draw is not None:
        seed, batch, first_row, first_latent = gates.draw
        t += random_uniform(seed, batch, first_row, *a.shape, a.device, first_latent).logit_()
    t /= beta
    return t if weight == 0 else t.neg_().sigmoid_().neg_().add_(a.abs(), alpha=weight)


def layer_norm(
    a: Tensor,
    num_latents: int | None = None,
    gather_units: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """(a - mean) / sqrt(variance + 1e-5), with mean and variance over a row's F latents; ``a`` is [b, n].

    Sums over the latents of a unit are float32, sums over units float64: of all processes, in one order.

    Args:
        num_latents: F, if processes share the latents; None: n.
        gather_units: makes [units of F, b] of this process's [units, b].
    """
    total = a.shape[1] if num_latents is None else num_latents
    unit = part_of(total)
    whole = a.shape[1] // unit * unit

    def mean_of(of_unit: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """The mean of a row, float64 [b], from its sums over the latents of each unit, float32 [b, units]."""
        parts = [values[:, :whole].view(len(values), -1, unit), values[:, None, whole:]]
        sums = torch.cat([of_unit(part) for part in parts if part.numel()], dim=1).double()
        return gather_units(sums.T.contiguous()).sum(0).div_(total)

    centered = a - mean_of(lambda part: part.sum(2), a).to(a.dtype)[:, None]
    variance = mean_of(lambda part: torch.linalg.vector_norm(part, dim=2).square(), centered)
    return centered.mul_((variance + EPSILON).rsqrt_().to(a.dtype)[:, None])
