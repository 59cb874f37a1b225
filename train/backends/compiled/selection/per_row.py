"""TopK: select the k largest pre-activations of each row.

Legend: B rows, b rows of a block, F latents.
"""

from typing import Any

import numpy as np
import torch

from ....pairs import Pairs
from ...block_pairs import BlockPairs, assemble
from ...sources import Source
from ..bits import LOWEST, key, keys_of, kth_key
from ..compile import compiled
from .refine import Narrower
from .scan import CHUNK, OVERFLOW
from .scan_largest import enough_chunks, scan_for_largest, scan_for_leaders, scan_for_others
from .scored_blocks import ScoredBlock, each_block

CANDIDATES_PER_K = 8  # the room for a row's candidates; a row that has more is scanned again alone
CANDIDATES_SHARE = 1 / 16  # of all latents, if that is more room


def largest_per_row(source: Source, k: int) -> Pairs:
    """See :meth:`...protocol.Backend.largest_per_row`.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    found = each_block(source, lambda block: _select(block, k), per_row=k)
    return assemble(found, source.num_latents, source.device)


def _select(block: ScoredBlock, k: int) -> BlockPairs:
    num_rows, num_latents = block.scores.shape
    latent, value = torch.empty(num_rows, k, dtype=torch.int64), torch.empty(num_rows, k)
    capacity = min(max(CANDIDATES_PER_K * k, int(CANDIDATES_SHARE * num_latents)) + CHUNK, num_latents)
    count = _select_rows(block, k, capacity, latent.numpy(), value.numpy())
    overflown: list[int] = np.flatnonzero(count == OVERFLOW).tolist()
    for row in overflown:  # many equal scores, or loose bounds: every latent may be a candidate
        one = slice(row, row + 1)
        _select_rows(block.part(row, row + 1), k, num_latents, latent[one].numpy(), value[one].numpy())
    return BlockPairs(block.first_row, torch.full((num_rows,), k), latent.flatten(), value.flatten())


def _select_rows(block: ScoredBlock, k: int, capacity: int, latent: Any, value: Any) -> Any:
    """Select in all rows of the block, and write to ``latent`` and ``value`` [b, k].

    Returns:
        The number of candidates of every row, or OVERFLOW if it exceeds ``capacity``; such rows are not
        written.
    """
    candidate = np.empty((block.num_rows, capacity + CHUNK), np.int64)
    score = np.empty(candidate.shape, np.float32)
    count = np.empty(block.num_rows, np.int64)
    if block.narrower is not None and enough_chunks(block.latents, k):
        _from_leaders(block, block.narrower, k, candidate, score, count)
    else:
        _from_bounds(block, k, candidate, score, count)
    _keep_largest(candidate, score, count, k, latent, value)
    return count


def _from_bounds(block: ScoredBlock, k: int, candidate: Any, score: Any, count: Any) -> None:
    scan_for_largest(
        block.scores, block.tops, block.latents, block.slack, block.relative, k, candidate, count
    )
    start = np.arange(block.num_rows) * candidate.shape[1]
    stop = start + np.maximum(count, 0)
    if block.narrower is not None:
        stop = block.narrower.largest(block.first_row, start, stop, candidate.reshape(-1), k)
        np.copyto(count, stop - start, where=count != OVERFLOW)
    block.exact(block.first_row, start, stop, candidate.reshape(-1), score.reshape(-1))


def _from_leaders(
    block: ScoredBlock, narrower: Narrower, k: int, candidate: Any, score: Any, count: Any
) -> None:
    """Find candidates under wide bounds: exact pre-activations of k leaders first exclude most others."""
    num_rows = block.num_rows
    leader = np.empty((num_rows, k), np.int64)
    upper = np.empty(block.tops.shape, np.int32)
    bounds = (block.latents, block.slack, block.relative)
    scan_for_leaders(block.scores, block.tops, *bounds, k, leader, upper)
    value = np.empty((num_rows, k), np.float32)
    start = np.arange(num_rows) * k
    block.exact(block.first_row, start, start + k, leader.reshape(-1), value.reshape(-1))
    least = keys_of(value.min(axis=1))
    others = candidate[:, : candidate.shape[1] - k]  # leaves room for the leaders
    scan_for_others(block.scores, *bounds, leader, least, upper, others, count)
    start = np.arange(num_rows) * candidate.shape[1]
    stop = start + np.maximum(count, 0)
    any_latent = np.full(block.scores.shape[1], LOWEST)
    stop = narrower.reaching(block.first_row, start, stop, candidate.reshape(-1), least, any_latent)
    block.exact(block.first_row, start, stop, candidate.reshape(-1), score.reshape(-1))
    np.copyto(count, stop - start, where=count != OVERFLOW)
    _merge(leader, value, candidate, score, count)


@compiled
def _merge(leader: Any, leader_value: Any, candidate: Any, score: Any, count: Any) -> None:
    """Merge the leaders into the candidates of their row, in ascending order; ``count`` grows by k."""
    k = leader.shape[1]
    for row in range(count.shape[0]):
        if count[row] == OVERFLOW:
            continue
        i, n = count[row] - 1, k - 1
        while n >= 0:  # from the back, so that nothing is overwritten before it is moved
            place = i + n + 1
            if i >= 0 and candidate[row, i] > leader[row, n]:
                candidate[row, place], score[row, place] = candidate[row, i], score[row, i]
                i -= 1
            else:
                candidate[row, place], score[row, place] = leader[row, n], leader_value[row, n]
                n -= 1
        count[row] += k


@compiled
def _keep_largest(candidate: Any, score: Any, count: Any, k: int, latent: Any, value: Any) -> None:
    """Keep the ``k`` largest of each row's candidates, in their order; ties go to the first."""
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
