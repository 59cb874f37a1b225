"""Pairs from some of the candidates, or of a matrix: those that are kept move together, in their order."""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import ROWS, Pairs
from ..constants import spaced
from .candidates import Candidates
from .launch import blocks, kernel, launch
from .order import key_of, nth_largest

BLOCK = 1024


@kernel
def _compact_kernel(
    before, column, value, out_column, out_value, size, room, N,
    DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``before`` int64 [size + 1] counts the marked entries before each; ``room`` is how many go out."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    to = tl.load(before + i, mask=inside, other=0)
    marked = (tl.load(before + i + 1, mask=inside, other=0) > to) & (to < room)
    if DENSE:
        c = i % N
    else:
        c = tl.load(column + i, mask=marked, other=0).to(tl.int64)
    tl.store(out_column + to, c, mask=marked)
    tl.store(out_value + to, tl.load(value + i, mask=marked, other=0.0), mask=marked)


def _compact(
    marked: Tensor, value: Tensor, column: Tensor | None, ptr: Tensor, num_columns: int, room: int
) -> Pairs:
    before = torch.zeros(marked.numel() + 1, dtype=torch.int64, device=value.device)
    torch.cumsum(marked, 0, out=before[1:])
    # zeros: whatever goes wrong before the late check, the places stay inside
    out_column = torch.zeros(room, dtype=torch.int64, device=value.device)
    out_value = torch.zeros(room, device=value.device)
    size = marked.numel()
    launch(
        _compact_kernel, (blocks(size, BLOCK),), before, before if column is None else column, value,
        out_column, out_value, size, room, num_columns, DENSE=column is None, BLOCK=BLOCK,
    )  # fmt: skip
    row_ptr = before.index_select(0, ptr.clamp_max(size))
    return Pairs(row_ptr=row_ptr, latent=out_column, value=out_value, num_latents=num_columns)


def compact_candidates(some: Candidates, marked: Tensor, num_columns: int, room: int) -> Pairs:
    """The candidates that are ``marked`` (bool [candidates' room]), the first ``room`` of them."""
    return _compact(marked, some.value, some.column, some.ptr, num_columns, room)


def compact_matrix(values: Tensor, marked: Tensor, room: int) -> Pairs:
    """The entries of ``values`` float32 [M, N] that are ``marked`` (bool [M * N]), the first ``room`` of
    them.
    """
    num_rows, num_columns = values.shape
    ptr = torch.arange(num_rows + 1, device=values.device) * num_columns
    return _compact(marked, values.view(-1), None, ptr, num_columns, room)


@kernel
def _tally_kernel(values, count, capacity, least, tally, N: tl.constexpr):
    """``tally`` int64 [2, programs]: how many values of each block are above ``least``, and equal to it."""
    n = tl.minimum(tl.load(count), capacity)
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    key, bar = key_of(tl.load(values + i, mask=i < n, other=0.0)), key_of(tl.load(least + i * 0))
    place = tally + tl.program_id(0)
    tl.store(place, tl.sum(((key > bar) & (i < n)).to(tl.int32), axis=0).to(tl.int64))
    tl.store(place + tl.num_programs(0), tl.sum(((key == bar) & (i < n)).to(tl.int32), axis=0).to(tl.int64))


@kernel
def _largest_kernel(
    values, row, column, count, capacity, least, left, tally, out_row, out_column, out_value, room, columns,
    DENSE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Move the values above ``least``, and the first ``left`` of those equal to it.

    ``tally`` has the sums of that of :func:`_tally_kernel` up to each block, with the block itself. As the
    equal ones are kept from the first on, a place is known from both sums.
    """
    n = tl.minimum(tl.load(count), capacity)
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    value = tl.load(values + i, mask=i < n, other=0.0)
    key, bar = key_of(value), key_of(tl.load(least + i * 0))
    above, equal = ((key > bar) & (i < n)).to(tl.int32), ((key == bar) & (i < n)).to(tl.int32)
    place = tally + tl.program_id(0)
    above_before = tl.load(place) - tl.sum(above, axis=0) + (tl.cumsum(above, axis=0) - above)
    equal_before = tl.load(place + tl.num_programs(0)) - tl.sum(equal, axis=0)
    equal_before += tl.cumsum(equal, axis=0) - equal
    most = tl.load(left + i * 0)
    to = above_before + tl.minimum(equal_before, most)
    kept = ((above > 0) | ((equal > 0) & (equal_before < most))) & (to < room)
    if DENSE:
        r, c = i // columns, i % columns
    else:
        r = tl.load(row + i, mask=kept, other=0).to(tl.int64)
        c = tl.load(column + i, mask=kept, other=0).to(tl.int64)
    tl.store(out_row + to, r, mask=kept)
    tl.store(out_column + to, c, mask=kept)
    tl.store(out_value + to, value, mask=kept)


def _largest(
    values: Tensor, count: Tensor, places: Candidates | None, num_rows: int, num_columns: int, total: int
) -> Pairs:
    device, size = values.device, values.numel()
    least, left = nth_largest(values, count, total)
    tally = torch.empty(2, blocks(size, BLOCK), dtype=torch.int64, device=device)
    launch(_tally_kernel, (tally.shape[1],), values, count, size, least, tally, N=BLOCK)
    # zeros: whatever goes wrong before the late check, the places stay inside
    out = torch.zeros(5 * total, dtype=torch.int32, device=device).split([2 * total, 2 * total, total])
    row, column, value = out[0].view(torch.int64), out[1].view(torch.int64), out[2].view(torch.float32)
    from_row, from_column = (count, count) if places is None else (places.row, places.column)
    launch(
        _largest_kernel, (tally.shape[1],), values, from_row, from_column, count, size, least, left,
        tally.cumsum(1), row, column, value, total, num_columns, DENSE=places is None, N=BLOCK,
    )  # fmt: skip
    row_ptr = torch.searchsorted(row, spaced(0, num_rows + 1, 1, device))
    pairs = Pairs(row_ptr=row_ptr, latent=column, value=value, num_latents=num_columns)
    pairs.once(ROWS, lambda: row)
    return pairs


def largest_candidates(some: Candidates, num_rows: int, num_columns: int, total: int) -> Pairs:
    """The ``total`` largest candidates, the first of equal ones. If there are fewer, the rest is zeros."""
    return _largest(some.value, some.count, some, num_rows, num_columns, total)


def largest_of_matrix(values: Tensor, total: int) -> Pairs:
    """The ``total`` largest entries of ``values`` float32 [M, N], the first of equal ones."""
    count = torch.full((1,), values.numel(), dtype=torch.int64, device=values.device)
    num_rows, num_columns = values.shape
    return _largest(values.view(-1), count, None, num_rows, num_columns, total)
