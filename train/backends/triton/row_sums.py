"""Sums over the rows of a block of pre-activations, by which Sampled-SAE scores its latents.

A program adds up some rows of some latents; the programs' sums are then added in float64, in a fixed order.
"""

import torch
import triton.language as tl
from torch import Tensor

from .launch import blocks, kernel, launch, whole_rows

ROWS, COLUMNS = 16, 128  # at a time
PART_ROWS = 256  # of a program


@kernel
def _row_sums_kernel(
    pre, out, B, F,
    POSITIVE: tl.constexpr, ENTROPY: tl.constexpr, PART: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """``out`` float64 [parts, 1 or 2, F]."""
    across = tl.cdiv(F, N)
    part = (tl.program_id(0) // across).to(tl.int64)
    column = tl.program_id(0) % across * N + tl.arange(0, N)
    first = part * PART
    row = tl.arange(0, R)
    sums, others = tl.zeros((R, N), tl.float32), tl.zeros((R, N), tl.float32)
    for start in range(0, PART, R):
        r = first + start + row
        inside = (r < B)[:, None] & (column < F)[None, :]
        z = tl.load(pre + r[:, None] * F + column[None, :], mask=inside, other=0.0)
        if POSITIVE:
            z = tl.maximum(z, 0.0)
        if ENTROPY:
            sums += z
            others += tl.where(z > 0, z * tl.log(tl.where(z > 0, z, 1.0)), 0.0)
        else:
            sums = tl.fma(z, z, sums)
    if ENTROPY:
        place = out + part * 2 * F + column
        tl.store(place, tl.sum(sums.to(tl.float64), axis=0), mask=column < F)
        tl.store(place + F, tl.sum(others.to(tl.float64), axis=0), mask=column < F)
    else:
        tl.store(out + part * F + column, tl.sum(sums.to(tl.float64), axis=0), mask=column < F)


def sum_rows(pre: Tensor, *, positive: bool, entropy: bool) -> Tensor:
    """As :meth:`..protocol.Backend.sum_rows`, in float64."""
    pre = whole_rows("pre", pre)
    num_rows, num_latents = pre.shape
    parts = blocks(num_rows, PART_ROWS)
    sums = torch.empty(parts, 1 + entropy, num_latents, dtype=torch.float64, device=pre.device)
    launch(
        _row_sums_kernel, (parts * blocks(num_latents, COLUMNS),), pre, sums, num_rows, num_latents,
        POSITIVE=positive, ENTROPY=entropy, PART=PART_ROWS, R=ROWS, N=COLUMNS,
    )  # fmt: skip
    return sums.sum(0)
