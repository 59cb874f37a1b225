"""Pairs from marked candidates: the marked ones move together, in their order."""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from .candidates import Candidates
from .launch import blocks, kernel, launch

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
