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


@kernel
def _active_kernel(ptr, index, value, out, INDEXED: tl.constexpr):
    """out[s] = how many values of segment s are not 0; with INDEXED they lie at ``index``."""
    s = tl.program_id(0)
    first, last = tl.load(ptr + s), tl.load(ptr + s + 1)
    lane = tl.arange(0, 64)
    counts = tl.zeros((64,), tl.int64)
    for start in range(first, last, 64):
        here = start + lane < last
        i = start + lane
        if INDEXED:
            i = tl.load(index + i, mask=here, other=0)
        counts += (tl.load(value + i, mask=here, other=0.0) != 0).to(tl.int64)
    tl.store(out + s, tl.sum(counts, axis=0))


def count_active(codes: Pairs) -> tuple[Tensor, Tensor]:
    """How many values are not 0: those of each row, int64 [B], and of each latent, int64 [F]."""
    if codes.num_positive == len(codes):
        return codes.once("triton lengths", lambda: (codes.row_ptr.diff(), count_per_latent(codes)))
    order, value = by_latent(codes), codes.value.contiguous()
    found = []
    for ptr, index in ((codes.row_ptr, None), (order.latent_ptr, order.pair)):
        out = torch.empty(len(ptr) - 1, dtype=torch.int64, device=value.device)
        launch(
            _active_kernel, (len(out),), ptr, ptr if index is None else index, value, out,
            INDEXED=index is not None, num_warps=1,
        )  # fmt: skip
        found.append(out)
    return found[0], found[1]


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
