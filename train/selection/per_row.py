"""TopK: the k largest pre-activations of each row.

Legend: B rows, b rows of a block, F latents.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.encode import Blocks
from ..pairs import Pairs
from .errors import check_not_nan
from .float_bits import key, keys_of, kth_key
from .pieces import Piece, assemble
from .scan import CHUNK, OVERFLOW
from .scan_largest import enough_chunks, scan_for_largest, scan_for_leaders, scan_reaching
from .scores import each_block
from .screen import ScoredBlock

CANDIDATES_PER_K = 8  # room for a row's candidates; a row that has more is looked at again by itself
CANDIDATES_SHARE = 1 / 16  # of all latents, where that is more


def select_per_row(blocks: Blocks, num_rows: int, num_latents: int, k: int) -> Pairs:
    """The ``k`` largest of each row; the lowest latent first among equals. Negative ones too: k in every row.

    From :func:`..kernels.encode_blocks`, "largest" is by the pre-activations that ``sddmm(pairs, x, W_enc) +
    b_enc`` gives, and these are the pairs' values, bit for bit, whatever product screened them
    (:mod:`.bounds`); other blocks are taken as they are.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    if not 1 <= k <= num_latents:
        raise ValueError(f"k must be from 1 to the number of latents, {num_latents}, got {k}")
    if num_rows == 0:
        return assemble([_no_rows()], num_latents)
    pieces = each_block(
        blocks, lambda block: _select(block, k), lambda row, pre: _select_torch(row, pre, k), per_row=k
    )
    return assemble(pieces, num_latents)


def _no_rows() -> Piece:
    none = torch.zeros(0, dtype=torch.int64)
    return Piece(0, none, none, torch.zeros(0))


def _select_torch(first_row: int, pre: Tensor, k: int) -> Piece:
    check_not_nan(first_row, pre)
    least = pre.topk(k, dim=1, sorted=True).values[:, -1:]
    above, equal = pre > least, pre == least
    wanted = k - above.sum(1, keepdim=True)
    latent = (above | (equal & (equal.cumsum(1) <= wanted))).nonzero()[:, 1]
    count = torch.full((pre.shape[0],), k, dtype=torch.int64, device=pre.device)
    return Piece(first_row, count, latent, pre.gather(1, latent.view(-1, k)).flatten())


def _select(block: ScoredBlock, k: int) -> Piece:
    num_rows, num_latents = block.scores.shape
    latent, value = torch.empty(num_rows, k, dtype=torch.int64), torch.empty(num_rows, k)
    capacity = min(max(CANDIDATES_PER_K * k, int(CANDIDATES_SHARE * num_latents)) + CHUNK, num_latents)
    count = _select_rows(block, k, capacity, 0, num_rows, latent.numpy(), value.numpy())
    overflown: list[int] = np.flatnonzero(count == OVERFLOW).tolist()
    for row in overflown:  # many equal scores, or loose bounds: every latent may be a candidate
        _select_rows(block, k, num_latents, row, row + 1, latent.numpy(), value.numpy())
    return Piece(block.first_row, torch.full((num_rows,), k), latent.flatten(), value.flatten())


def _select_rows(
    block: ScoredBlock, k: int, capacity: int, first: int, last: int, latent: Any, value: Any
) -> Any:
    """Select in rows ``first`` to ``last - 1`` of the block, into ``latent`` and ``value`` [b, k].

    Returns:
        The number of candidates of every row of the block, or OVERFLOW where they were more than
        ``capacity`` and the row is left as it was.
    """
    num_rows, stride = block.scores.shape[0], capacity + CHUNK
    count = np.zeros(num_rows, np.int64)
    candidate = np.empty((last - first, stride), np.int64)
    scan = _scan_twice if block.wide and enough_chunks(block.latents, k) else _scan_once
    scan(block, k, first, last, candidate, count[first:last])
    start = np.arange(-first, num_rows - first) * stride  # rows before `first` have no candidates
    score = np.empty(candidate.size, np.float32)
    block.exact(start, start + np.maximum(count, 0), candidate.reshape(-1), score)
    _keep_largest(
        candidate, score.reshape(candidate.shape), count[first:last], k, latent[first:last], value[first:last]
    )
    return count


def _scan_once(block: ScoredBlock, k: int, first: int, last: int, candidate: Any, count: Any) -> None:
    scores, slack = block.scores[first:last], block.slack[first:last]
    scan_for_largest(scores, block.latents, slack, block.relative, k, candidate, count)


def _scan_twice(block: ScoredBlock, k: int, first: int, last: int, candidate: Any, count: Any) -> None:
    """With wide bounds: some exact pre-activations first, to be left with far fewer candidates."""
    scores, slack = block.scores[first:last], block.slack[first:last]
    leader = np.empty((last - first, k), np.int64)
    upper = np.empty((last - first, block.latents.norm_of_chunk.shape[0]), np.int32)
    scan_for_leaders(scores, block.latents, slack, block.relative, k, leader, upper)
    start = np.zeros(block.num_rows, np.int64)
    stop = np.zeros(block.num_rows, np.int64)
    start[first:last] = np.arange(0, leader.size, k)
    stop[first:last] = start[first:last] + k
    value = np.empty(leader.size, np.float32)
    block.exact(start, stop, leader.reshape(-1), value)
    least = value.reshape(leader.shape).min(axis=1)
    scan_reaching(scores, block.latents, slack, block.relative, keys_of(least), upper, candidate, count)


@compiled
def _keep_largest(candidate: Any, score: Any, count: Any, k: int, latent: Any, value: Any) -> None:
    """The ``k`` largest of each row's candidates, in their order; the first of equal ones."""
    keys = np.empty(candidate.shape[1], np.int32)
    for row in range(count.shape[0]):
        if count[row] < k:
            continue
        above = 0
        for i in range(count[row]):
            keys[i] = key(score[row, i])
        least = kth_key(keys, count[row], k)
        for i in range(count[row]):
            above += keys[i] > least
        equal_left = k - above
        n = 0
        for i in range(count[row]):
            if keys[i] > least or (keys[i] == least and equal_left > 0):
                equal_left -= keys[i] == least
                latent[row, n] = candidate[row, i]
                value[row, n] = score[row, i]
                n += 1
