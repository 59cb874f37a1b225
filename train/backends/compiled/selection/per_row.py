"""TopK: select the k largest pre-activations of each row.

Legend: B rows, b rows of a block, F latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from ....pairs import Pairs
from ...block_pairs import BlockPairs, assemble
from ...sources import Source
from ..bits import LOWEST, key, keys_of, kth_key
from ..compile import compiled
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
    found = each_block(source, lambda block: keep_largest(block, k, partial(_find, k)), per_row=k)
    return assemble(found, source.num_latents, source.device)


Find = Callable[[ScoredBlock, Any, Any, Any], None]
"""``find(block, candidate, score, count)`` finds a superset of what is to be selected in each row.

Args:
    candidate: int64 [b, capacity + CHUNK], receives the latents, ascending. score: float32, the same shape,
        receives their pre-activations.
    count: int64 [b], receives the number of candidates, or OVERFLOW if they exceed the capacity.
"""


def keep_largest(block: ScoredBlock, k: int, find: Find) -> BlockPairs:
    """The ``k`` largest of the candidates of each row, or all if there are fewer; ties go to the first."""
    num_rows, num_latents = block.scores.shape
    latent, value = np.empty((num_rows, k), np.int64), np.empty((num_rows, k), np.float32)

    def keep(part: ScoredBlock, first: int, capacity: int) -> Any:
        rows = slice(first, first + part.num_rows)
        candidate = np.empty((part.num_rows, capacity + CHUNK), np.int64)
        score = np.empty(candidate.shape, np.float32)
        count = np.empty(part.num_rows, np.int64)
        find(part, candidate, score, count)
        _keep_largest(candidate, score, count, k, latent[rows], value[rows])
        return count

    capacity = min(max(CANDIDATES_PER_K * k, int(CANDIDATES_SHARE * num_latents)) + CHUNK, num_latents)
    count = keep(block, 0, capacity)
    for row in np.flatnonzero(count == OVERFLOW).tolist():  # many equal scores, or loose bounds
        count[row : row + 1] = keep(block.part(row, row + 1), row, num_latents)
    kept, latents, values = (torch.from_numpy(array) for array in (count.clip(max=k), latent, value))
    if (count >= k).all():
        return BlockPairs(block.first_row, kept, latents.flatten(), values.flatten())
    some = torch.arange(k) < kept[:, None]
    return BlockPairs(block.first_row, kept, latents[some], values[some])


def _find(k: int, block: ScoredBlock, candidate: Any, score: Any, count: Any) -> None:
    if block.narrower is not None and enough_chunks(block.latents, k):
        leaders = find_leaders(block, k)
        find_reaching(block, leaders, leaders.least, candidate, score, count)
    else:
        _find_by_bounds(k, block, candidate, score, count)


def _find_by_bounds(k: int, block: ScoredBlock, candidate: Any, score: Any, count: Any) -> None:
    scan_for_largest(
        block.scores, block.tops, block.latents, block.slack, block.relative, k, candidate, count
    )
    start = np.arange(block.num_rows) * candidate.shape[1]
    stop = start + np.maximum(count, 0)
    if block.narrower is not None:
        stop = block.narrower.largest(block.first_row, start, stop, candidate.reshape(-1), k)
        np.copyto(count, stop - start, where=count != OVERFLOW)
    block.exact(block.first_row, start, stop, candidate.reshape(-1), score.reshape(-1))


@dataclass(frozen=True, eq=False)
class Leaders:
    """Latents of each row that are among its largest, or nearly, with their pre-activations.

    Attributes:
        latent: int64 [b, m], ascending. value: float32 [b, m].
        upper: int32 [b, chunks], the keys of m + E of each chunk (:mod:`.scan`).
    """

    latent: Any
    value: Any
    upper: Any

    @cached_property
    def least(self) -> Any:
        """The key of the least of each row's leaders: int32 [b]. ``m`` pre-activations reach it."""
        return keys_of(self.value.min(axis=1))

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        return self.latent, self.value, self.upper

    def part(self, rows: slice) -> "Leaders":
        return Leaders(self.latent[rows], self.value[rows], self.upper[rows])


def find_leaders(block: ScoredBlock, count: int) -> Leaders:
    """Find ``count`` leaders of each row; there must be as many chunks."""
    leader = np.empty((block.num_rows, count), np.int64)
    upper = np.empty(block.tops.shape, np.int32)
    bounds = (block.latents, block.slack, block.relative)
    scan_for_leaders(block.scores, block.tops, *bounds, count, leader, upper)
    value = np.empty(leader.shape, np.float32)
    start = np.arange(block.num_rows) * count
    block.exact(block.first_row, start, start + count, leader.reshape(-1), value.reshape(-1))
    return Leaders(leader, value, upper)


def find_reaching(
    block: ScoredBlock, leaders: Leaders, least: Any, candidate: Any, score: Any, count: Any
) -> None:
    """Find the leaders, and every latent whose pre-activation can reach the key ``least[row]``; see Find.

    Exact pre-activations of leaders first exclude most others, which the wide bounds of an int8 product do
    not. ``least`` is at most that of the leaders.
    """
    bounds = (block.latents, block.slack, block.relative)
    num_leaders = leaders.latent.shape[1]
    others = candidate[:, : candidate.shape[1] - num_leaders]  # leaves room for the leaders
    scan_for_others(block.scores, *bounds, leaders.latent, least, leaders.upper, others, count)
    start = np.arange(block.num_rows) * candidate.shape[1]
    stop = start + np.maximum(count, 0)
    if block.narrower is not None:
        any_latent = np.full(block.scores.shape[1], LOWEST)
        stop = block.narrower.reaching(block.first_row, start, stop, candidate.reshape(-1), least, any_latent)
    block.exact(block.first_row, start, stop, candidate.reshape(-1), score.reshape(-1))
    np.copyto(count, stop - start, where=count != OVERFLOW)
    _merge(leaders.latent, leaders.value, candidate, score, count)


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
    """Keep the ``k`` largest of each row's candidates, or all, in their order; ties go to the first."""
    keys = np.empty(candidate.shape[1], np.int32)
    for row in range(count.shape[0]):
        if count[row] <= k:
            for i in range(count[row]):
                latent[row, i] = candidate[row, i]
                value[row, i] = score[row, i]
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
