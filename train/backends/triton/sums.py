"""Counts and sums over the pairs of each latent, in one fixed order and without atomics."""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from .exact import fold_lanes
from .launch import kernel, launch
from .transpose import by_latent


@kernel
def _sums_kernel(latent_ptr, pair, values, out):
    f = tl.program_id(0)
    first, last = tl.load(latent_ptr + f), tl.load(latent_ptr + f + 1)
    lane = tl.arange(0, 256)
    sums = tl.zeros((256,), tl.float64)
    for start in range(first, last, 256):
        here = start + lane < last
        p = tl.load(pair + start + lane, mask=here, other=0)
        sums += tl.load(values + p, mask=here, other=0.0).to(tl.float64)
    total = tl.sum(fold_lanes(tl.reshape(sums, (1, 256)), 1), axis=0)
    tl.store(out + f, total.to(out.dtype.element_ty))


def count_per_latent(pairs: Pairs) -> Tensor:
    """How many rows use each latent: int64 [F]."""
    return by_latent(pairs).latent_ptr.diff()


def sum_per_latent(pairs: Pairs, values: Tensor) -> Tensor:
    """Sum of ``values`` [P] over the pairs of each latent: [F], added up in float64, in the dtype of
    ``values``.

    Pair n of a latent belongs to lane n mod 256; the lanes are added up as in :mod:`.exact`.
    """
    order, values = by_latent(pairs), values.contiguous()
    out = torch.empty(pairs.num_latents, dtype=values.dtype, device=values.device)
    launch(_sums_kernel, (pairs.num_latents,), order.latent_ptr, order.pair, values, out, num_warps=1)
    return out
