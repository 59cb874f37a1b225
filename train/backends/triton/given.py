"""The largest of each row of given scores, which are compared as they are.

The bar of a row is a number that as many of its chunks reach as scores are wanted. Only chunks that reach
it are scanned. Legend: M rows, N columns, C chunks of a row.
"""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from ...selection.errors import check_not_nan
from ..block_pairs import BlockPairs, assemble
from ..constants import spaced
from ..sources import Scores
from .candidates import SCANNED, room_for
from .largest import keep_largest
from .launch import blocks, kernel, launch, padded, warps_of, whole_rows
from .order import float_of_key, key_of, nth_largest_key
from .screen import chunk_for


@kernel
def _bar_kernel(
    scores, tops, least, bad, k, N, C,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The largest score of each chunk, a number that ``k`` of the chunks reach, and how many are NaN."""
    r = tl.program_id(0).to(tl.int64)
    number = r * 0
    for start in range(0, C, CHUNKS):
        c = start + tl.arange(0, CHUNKS)
        n = c[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        score = tl.load(scores + r * N + n, mask=n < N, other=float("-inf"))
        number += tl.sum(tl.sum((score != score).to(tl.int32), axis=1), axis=0)
        tl.store(tops + r * C + c, tl.max(score, axis=1), mask=c < C)
    tl.store(bad + r, number.to(tl.int32))
    tl.debug_barrier()
    c = tl.arange(0, CP)
    key = tl.where(c < C, key_of(tl.load(tops + r * C + c, mask=c < C, other=0.0)), 0)
    found = nth_largest_key(key, k)
    value = tl.where(found == 0, float("-inf"), float_of_key(found))  # 0: fewer chunks than are wanted
    tl.store(least + r + tl.arange(0, 1), value)


@kernel
def _reaching_kernel(
    scores, tops, least, bad, count, ptr, column, value, room, N, C,
    FILL: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Count the scores of a row that reach ``least``; with FILL, write them from ``ptr[row]`` on.

    A row with a NaN counts as one that has more than fit.
    """
    r = tl.program_id(0).to(tl.int64)
    bar = tl.load(least + r)
    total = r * 0
    if FILL:
        total = tl.load(ptr + r)
    for start in range(0, C, CHUNKS):
        c = start + tl.arange(0, CHUNKS)
        reaches = tl.load(tops + r * C + c, mask=c < C, other=float("-inf")) >= bar
        n = c[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        inside = tl.reshape(reaches[:, None] & (n < N), (CHUNKS * CHUNK,))
        n = tl.reshape(n, (CHUNKS * CHUNK,))
        score = tl.load(scores + r * N + n, mask=inside, other=0.0)
        passes = (inside & (score >= bar)).to(tl.int32)
        if FILL:
            place = total + tl.cumsum(passes, axis=0) - passes
            here = (passes > 0) & (place < room)
            tl.store(column + place, n, mask=here)
            tl.store(value + place, score, mask=here)
        total += tl.sum(passes, axis=0)
    if not FILL:
        tl.store(count + r + 1, tl.where(tl.load(bad + r) > 0, room + 1, total))
        tl.store(count, r * 0)


def largest_per_row_of_scores(source: Scores, k: int) -> Pairs:
    """As :meth:`..protocol.Backend.largest_per_row`. Each block of rows is read from once by the host."""
    blocks_of_rows = ((first_row, scores) for first_row, scores in source.blocks() if len(scores))
    found = [_of_block(first_row, scores, k) for first_row, scores in blocks_of_rows]
    return assemble(found, source.num_latents, source.device)


def _of_block(first_row: int, scores: Tensor, k: int) -> BlockPairs:
    scores = whole_rows("scores", scores)
    (num_rows, num_columns), device = scores.shape, scores.device
    chunk = chunk_for(num_columns, k)
    num_chunks, chunks = blocks(num_columns, chunk), SCANNED // chunk
    room = room_for(num_rows, num_columns, k * num_rows)
    tops, least = scores.new_empty(num_rows, num_chunks), scores.new_empty(num_rows)
    bad = torch.empty(num_rows, dtype=torch.int32, device=device)
    ptr, count = torch.empty(2, num_rows + 1, dtype=torch.int64, device=device)
    column = torch.empty(room, dtype=torch.int32, device=device)
    value = scores.new_empty(room)
    size = padded(num_chunks)
    launch(
        _bar_kernel, (num_rows,), scores, tops, least, bad, k, num_columns, num_chunks,
        CHUNK=chunk, CHUNKS=chunks, CP=size, num_warps=warps_of(size),
    )  # fmt: skip
    for fill in (False, True):
        launch(
            _reaching_kernel, (num_rows,), scores, tops, least, bad, count, ptr, column, value, room,
            num_columns, num_chunks, FILL=fill, CHUNK=chunk, CHUNKS=chunks,
        )  # fmt: skip
        if not fill:
            torch.cumsum(count, 0, out=ptr)
    row_ptr = spaced(0, (num_rows + 1) * k, k, device)
    pairs = Pairs(
        row_ptr=row_ptr,
        latent=torch.empty(k * num_rows, dtype=torch.int64, device=device),
        value=scores.new_empty(k * num_rows),
        num_latents=num_columns,
    )
    keep_largest(pairs, k, value, ptr=ptr, column=column)
    if int(ptr[-1]) > room:
        check_not_nan(first_row, scores)
        rows = (ptr[1:] > room).nonzero()[:, 0]
        keep_largest(pairs, k, scores[rows].view(-1), rows=rows)
    return BlockPairs(first_row, row_ptr.diff(), pairs.latent, pairs.value)
