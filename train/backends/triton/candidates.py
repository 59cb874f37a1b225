"""The pairs that a selection must look at: those whose upper bound reaches a threshold.

Candidates are a list over all rows, ascending by (row, column), with room for a fixed number of them, so that
no size is read back from the device: a row's candidates are ``ptr[row]:ptr[row + 1]``, and rows for which
``ptr[row + 1]`` exceeds the room have overflown. Legend: M rows, N columns of a screen, C chunks of a row.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from .exact import exact_at
from .launch import kernel, launch, padded, warps_of
from .order import float_of_key, key_of, nth_largest, nth_largest_key
from .screen import Screen, lower_bound_of_top, upper_bound_of_stored

SCANNED = 1024  # columns at a time
ROOM_PER_WANTED = 4  # candidates for each pair that is looked for
ROOM_PER_ROW = 64


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Places, and their exact pre-activations.

    Attributes:
        ptr: int64 [M + 1], where the candidates of each row begin, even of those for which there is no room.
        row, column: int32 [room]. value: float32 [room]. Entries from ``ptr[M]`` on mean nothing.
    """

    ptr: Tensor
    row: Tensor
    column: Tensor
    value: Tensor

    @property
    def count(self) -> Tensor:
        """int64 [1], on the device; more than ``room`` if some overflowed."""
        return self.ptr[-1:]

    @property
    def room(self) -> int:
        """How many places there are."""
        return self.row.numel()


def room_for(num_rows: int, num_columns: int, wanted: int) -> int:
    """How many candidates to make room for when ``wanted`` pairs are looked for."""
    return min(num_rows * num_columns, ROOM_PER_WANTED * wanted + ROOM_PER_ROW * num_rows)


@kernel
def _lower_bounds_kernel(tops, row_factor, chunk_factor, out, C, CP: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CP)
    error = tl.load(row_factor + r) * tl.load(chunk_factor + c, mask=c < C, other=0.0)
    top = tl.load(tops + r * C + c, mask=c < C, other=0.0)
    tl.store(out + r * C + c, lower_bound_of_top(top, error), mask=c < C)


@kernel
def _least_of_row_kernel(
    tops, row_factor, chunk_factor, wanted, least, C,
    COUNTS: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """A number that as many pre-activations of the row reach as are wanted: of different chunks each."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CP)
    error = tl.load(row_factor + r) * tl.load(chunk_factor + c, mask=c < C, other=0.0)
    top = tl.load(tops + r * C + c, mask=c < C, other=0.0)
    key = tl.where(c < C, key_of(lower_bound_of_top(top, error)), 0)
    k = wanted
    if COUNTS:
        k = tl.load(wanted + r).to(tl.int32)
    found = nth_largest_key(key, k)
    value = tl.where(found == 0, float("-inf"), float_of_key(found))  # 0: fewer chunks than are wanted
    value = tl.where(k > 0, value, float("inf"))
    tl.store(least + r + tl.arange(0, 1), value)


def least_of_rows(found: Screen, wanted: int | Tensor) -> Tensor:
    """float32 [M]: at least ``wanted`` (an int, or int64 [M]) pre-activations of the row reach it."""
    num_rows, num_chunks = found.tops.shape
    out = torch.empty(num_rows, device=found.tops.device)
    size = padded(num_chunks)
    launch(
        _least_of_row_kernel, (num_rows,), found.tops, found.rows.factor,
        found.columns.chunk_factors(found.chunk), wanted, out, num_chunks, COUNTS=isinstance(wanted, Tensor),
        CP=size, num_warps=warps_of(size),
    )  # fmt: skip
    return out


def least_of_all(found: Screen, wanted: int) -> Tensor:
    """float32 [1]: at least ``wanted`` pre-activations reach it; -inf if the chunks are too few."""
    num_rows, num_chunks = found.tops.shape
    if wanted > found.tops.numel():
        return torch.full((1,), -torch.inf, device=found.tops.device)
    bounds = torch.empty_like(found.tops)
    size = padded(num_chunks)
    launch(
        _lower_bounds_kernel, (num_rows,), found.tops, found.rows.factor,
        found.columns.chunk_factors(found.chunk), bounds, num_chunks, CP=size, num_warps=warps_of(size),
    )  # fmt: skip
    count = torch.full((1,), bounds.numel(), dtype=torch.int64, device=bounds.device)
    return nth_largest(bounds.view(-1), count, wanted)[0]


@kernel
def _chunks_kernel(tops, limit, chunks, number, C, LIMIT: tl.constexpr, CP: tl.constexpr):
    """The chunks of a row that can hold a candidate, ascending, and how many they are."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CP)
    if LIMIT == "row":
        bar = tl.load(limit + r + c * 0)
    elif LIMIT == "column":
        bar = tl.load(limit + c, mask=c < C, other=0.0)
    else:
        bar = tl.load(limit + c * 0)
    reaches = ((tl.load(tops + r * C + c, mask=c < C, other=float("-inf")) >= bar) & (c < C)).to(tl.int32)
    place = tl.cumsum(reaches, axis=0) - reaches
    tl.store(chunks + r * C + place, c, mask=reaches > 0)
    tl.store(number + r, tl.sum(reaches, axis=0))


@kernel
def _scan_kernel(
    scores, row_factor, column_factor, bias, limit, chunks, number,
    count, ptr, row, column, room, N, C,
    LIMIT: tl.constexpr, BIAS_OF_ROWS: tl.constexpr, FILL: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Count the candidates of a row; with FILL, write them from ``ptr[row]`` on."""
    r = tl.program_id(0).to(tl.int64)
    stop = tl.load(number + r)
    factor = tl.load(row_factor + r)
    total = r * 0
    if FILL:
        total = tl.load(ptr + r)
    for start in range(0, stop, CHUNKS):
        j = start + tl.arange(0, CHUNKS)
        chunk = tl.load(chunks + r * C + j, mask=j < stop, other=C)
        n = tl.reshape(chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :], (CHUNKS * CHUNK,))
        inside = n < N
        score = tl.load(scores + r * N + n, mask=inside, other=0.0).to(tl.float32)
        error = factor * tl.load(column_factor + n, mask=inside, other=0.0)
        if BIAS_OF_ROWS:
            b = tl.load(bias + r + n * 0)
        else:
            b = tl.load(bias + n, mask=inside, other=0.0)
        if LIMIT == "row":
            bar = tl.load(limit + r + n * 0)
        elif LIMIT == "column":
            bar = tl.load(limit + n, mask=inside, other=0.0)
        else:
            bar = tl.load(limit + n * 0)
        passes = (inside & (upper_bound_of_stored(score, b, error) >= bar)).to(tl.int32)
        if FILL:
            place = total + tl.cumsum(passes, axis=0) - passes
            here = (passes > 0) & (place < room)
            tl.store(row + place, (n * 0 + r).to(tl.int32), mask=here)
            tl.store(column + place, n, mask=here)
        total += tl.sum(passes, axis=0)
    if not FILL:
        tl.store(count + r + 1, total)
        tl.store(count, r * 0)


def candidates(found: Screen, limit: Tensor, limit_of: str, room: int, x: Tensor, W: Tensor) -> Candidates:
    """The pairs whose upper bound reaches ``limit``, with their exact pre-activations.

    Args:
        limit: float32 [M] (``limit_of`` "row"), [N] ("column") or [1] ("all").
        room: how many fit, 1 at least.
        x, W: float32 [M, D] and [N, D], the rows and columns of the screen as they were before rounding.
    """
    num_rows, num_columns = found.scores.shape
    num_chunks, device = found.tops.shape[1], found.scores.device
    room = max(room, 1)
    chunk_limit = limit
    if limit_of == "column":
        short = num_chunks * found.chunk - num_columns
        chunk_limit = (
            torch.nn.functional.pad(limit, (0, short), value=torch.inf).view(-1, found.chunk).amin(1)
        )
    chunks = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=device)
    number = torch.empty(num_rows, dtype=torch.int32, device=device)
    size = padded(num_chunks)
    launch(
        _chunks_kernel, (num_rows,), found.tops, chunk_limit, chunks, number, num_chunks,
        LIMIT=limit_of, CP=size, num_warps=warps_of(size),
    )  # fmt: skip
    ptr = torch.empty(num_rows + 1, dtype=torch.int64, device=device)
    count = torch.empty(num_rows + 1, dtype=torch.int64, device=device)
    row, column = torch.empty(2, room, dtype=torch.int32, device=device)
    for fill in (False, True):
        launch(
            _scan_kernel, (num_rows,), found.scores, found.rows.factor, found.columns.factor, found.bias,
            limit, chunks, number, count, ptr, row, column, room, num_columns, num_chunks, LIMIT=limit_of,
            BIAS_OF_ROWS=found.bias_of_rows, FILL=fill, CHUNK=found.chunk, CHUNKS=SCANNED // found.chunk,
        )  # fmt: skip
        if not fill:
            torch.cumsum(count, 0, out=ptr)
    value = torch.empty(row.numel(), device=device)
    bias_of = "row" if found.bias_of_rows else "latent"
    exact_at(row, column, x, W, found.bias, value, count=ptr[-1:], bias_of=bias_of)
    return Candidates(ptr=ptr, row=row, column=column, value=value)
