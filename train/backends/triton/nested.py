"""The errors of nested dictionaries, and what they mean for each code, one program a row.

A row of the batch has G rows of pairs, its rings. The program adds up ring after ring, and so has the error
of every prefix on the way. Then it goes back, and adds up the weighted errors that each ring takes part in.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from .decode import decoded_row
from .exact import dot_of_rows
from .launch import kernel, launch, padded, warps_of, whole_rows

DOTS = 4  # dot products at a time of one ring; with 8 the registers of sm_90 do not suffice


@kernel
def _nested_kernel(
    row_ptr, latent, value, W, target, weight, whole, slopes, dots, squared, B, G,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """``weight`` float32 [G]; ``squared`` float32 [G, B]; ``slopes`` [B * G, D] first hold the errors."""
    r = tl.program_id(0).to(tl.int64)
    ring = r * G
    column = tl.arange(0, DP)
    inside = column < D
    sums = tl.zeros((DP,), tl.float32)
    for g in range(G):
        first, last = tl.load(row_ptr + ring + g), tl.load(row_ptr + ring + g + 1)
        sums = decoded_row(sums, latent, value, W, first, last, D, DP)
        e = sums - tl.load(target + r * D + column, mask=inside, other=0.0)
        tl.store(slopes + (ring + g) * D + column, e, mask=inside)
        tl.store(squared + g * B + r, tl.sum(e * e))
        if g == G - 1:
            tl.store(whole + r * D + column, e, mask=inside)
    tl.debug_barrier()
    slope = tl.zeros((DP,), tl.float32)
    for h in range(G):  # the last ring first
        g = G - 1 - h
        place = slopes + (ring + g) * D + column
        slope = tl.fma(tl.load(place, mask=inside, other=0.0), tl.load(weight + g), slope)
        tl.store(place, slope, mask=inside)
    tl.debug_barrier()  # every warp reads the whole rows back, in the order of sums of exact.py
    for g in range(G):
        first, last = tl.load(row_ptr + ring + g), tl.load(row_ptr + ring + g + 1)
        for start in range(first, last, N):
            p = start + tl.arange(0, N)
            here = p < last
            i = tl.load(latent + p, mask=here, other=0).to(tl.int64)
            dot = dot_of_rows(slopes + (ring + g) * D + tl.zeros((N,), tl.int64), W + i * D, here, D, N)
            tl.store(dots + p, dot, mask=here)


@lru_cache(maxsize=256)  # every step asks again: on a GPU it would have to be copied each time
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, device=device)


def reconstruct_nested(
    rings: Pairs, W_dec: Tensor, target: Tensor, weights: Sequence[float], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :meth:`..protocol.Backend.reconstruct_nested`; the dot products have the bits of ``sddmm``."""
    W_dec = whole_rows("W_dec", W_dec)
    target = whole_rows("target", target, W_dec.shape[1])
    num_rows, width = target.shape
    whole, slopes = torch.empty_like(target), target.new_empty(rings.num_rows, width)
    dots, squared = target.new_empty(len(rings)), target.new_empty(len(weights), num_rows)
    scaled = _on_device(tuple(weight * scale for weight in weights), target.device)
    launch(
        _nested_kernel, (num_rows,), rings.row_ptr, rings.latent, rings.value.contiguous(), W_dec, target,
        scaled, whole, slopes, dots, squared, num_rows, len(weights), D=width, DP=padded(width), N=DOTS,
        num_warps=warps_of(width),
    )  # fmt: skip
    return whole, slopes, dots, squared.sum(1, dtype=torch.float64)
