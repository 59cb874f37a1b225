"""The candidates of every latent in Feature Choice, updated as rows come in.

For latent i with count m, a heap holds the m largest lower bounds v - e so far (:mod:`.scan`); the smallest
of them is the latent's threshold. A row whose upper bound v + e is below the threshold can never be selected.
The others are held, and compared again when memory is short.

Legend: b rows of a block, F latents, M sum of the counts.
"""

from typing import Any

import numpy as np

from ...threads import run_parts
from ..bits import LOWEST, as_float, at_least, float_of_key, key, lowest, without_lowest
from ..compile import compiled
from .scan import CHUNK, EXCLUDED, chunk_error, error_bound, upper_keys, whole_chunks
from .scored_blocks import ScoredBlock

PART_LATENTS = 32 * CHUNK  # latents that a thread processes at a time
ROOM = 3  # candidates per selected pair for which there is room at first


class LatentCandidates:
    """The candidates of all latents. Rows must come in ascending order."""

    def __init__(self, counts: Any) -> None:
        """``counts``: the rows to select per latent, numpy int64 [F]."""
        self.num_latents = int(counts.shape[0])
        starts = range(0, self.num_latents, PART_LATENTS)
        self._parts = [_Part(start, counts[start : start + PART_LATENTS]) for start in starts]

    def add(self, block: ScoredBlock) -> None:
        """Add the candidates among the rows of a block."""
        run_parts(lambda first, last: self._parts[first].add(block), len(self._parts), 1)

    def collect(self) -> tuple[Any, Any, Any]:
        """Row (int64), latent (int64) and score v (float32) of every candidate that is left.

        They are ordered by groups of ``PART_LATENTS`` latents, within these by rows, then by latents. The
        memory in which they were held is freed on the way, and nothing can be added any more.
        """
        for part in self._parts:
            part.drop_beaten()
            del part.heap, part.upper
        return self._join("row", np.int64), self._join("latent", np.int64), self._join("score", np.float32)

    def _join(self, column: str, dtype: Any) -> Any:
        joined = np.concatenate([getattr(part, column)[: part.held] for part in self._parts], dtype=dtype)
        for part in self._parts:
            delattr(part, column)
        return joined


class _Part:
    """The candidates of consecutive latents."""

    def __init__(self, start: int, counts: Any) -> None:
        self.start, self.width = start, int(counts.shape[0])
        self.heap_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.heap = np.empty(int(self.heap_ptr[-1]), np.int32)
        self.filled = np.zeros(self.width, np.int64)
        self.threshold = np.full(whole_chunks(self.width), EXCLUDED, np.int32)
        self.threshold[: self.width][counts > 0] = LOWEST
        self.threshold_of_chunk = self.threshold.reshape(-1, CHUNK).min(axis=1)
        self._reserve(ROOM * (int(self.heap_ptr[-1]) + self.width))
        self.held = 0

    def _reserve(self, size: int) -> None:
        self.row: Any = np.empty(size, np.int32)  # of the batch, which has fewer than 2^31
        self.latent: Any = np.empty(size, np.int32)
        self.score: Any = np.empty(size, np.float32)
        self.upper: Any = np.empty(size, np.int32)

    def add(self, block: ScoredBlock) -> None:
        row = 0
        while row < block.num_rows:
            row, self.held = _scan(
                block.scores, block.tops, block.latents, block.slack, block.relative, block.first_row, row,
                self.start, self.heap_ptr, self.heap, self.filled, self.threshold, self.threshold_of_chunk,
                self.row, self.latent, self.score, self.upper, self.held,
            )  # fmt: skip
            if row < block.num_rows:
                self._make_room()

    def _make_room(self) -> None:
        self.drop_beaten()
        size = self.row.shape[0]
        if 2 * (self.held + self.width) > size:
            before = [array[: self.held] for array in (self.row, self.latent, self.score, self.upper)]
            self._reserve(2 * size)
            for array, held in zip((self.row, self.latent, self.score, self.upper), before, strict=True):
                array[: self.held] = held

    def drop_beaten(self) -> None:
        """Drop candidates that are now below the threshold of their latent."""
        arrays = (self.row, self.latent, self.score, self.upper)
        self.held = _keep_reaching(*arrays, self.held, self.threshold, self.start)


@compiled
def _scan(
    scores: Any, tops: Any, latents: Any, slack: Any, relative: Any, first_row: int, row: int,
    start: int, heap_ptr: Any, heap: Any, filled: Any, threshold: Any, threshold_of_chunk: Any,
    out_row: Any, out_latent: Any, out_score: Any, out_upper: Any, n: int,
) -> Any:  # fmt: skip
    """Scan rows from ``row`` on, until the block ends or the next row might not fit into the memory.

    Returns:
        The next row to scan, and the number of candidates held.
    """
    width = threshold.shape[0]
    keys = np.empty(CHUNK, np.int32)
    while row < scores.shape[0] and n + width <= out_row.shape[0]:
        for chunk in range(threshold_of_chunk.shape[0]):
            first = chunk * CHUNK
            whole = (start + first) // CHUNK
            m = float_of_key(tops[row, whole])
            if key(m + chunk_error(m, latents, whole, slack[row], relative)) < threshold_of_chunk[chunk]:
                continue
            upper_keys(scores[row], latents, slack[row], relative, start + first, keys)
            reaching = at_least(keys, threshold[first : first + CHUNK])
            while reaching != 0:
                j = lowest(reaching)
                reaching = without_lowest(reaching)
                own = first + j
                latent = start + own
                q = as_float(scores[row, latent])
                v = q + latents.bias[latent]
                out_row[n], out_latent[n], out_score[n], out_upper[n] = first_row + row, latent, v, keys[j]
                n += 1
                lower = key(v - error_bound(q, v, latents.norm[latent], slack[row], relative))
                base, size = heap_ptr[own], heap_ptr[own + 1] - heap_ptr[own]
                if filled[own] < size:
                    _push(heap, base, filled[own], lower)
                    filled[own] += 1
                    if filled[own] == size:
                        threshold[own] = heap[base]
                elif lower > heap[base]:
                    _replace_least(heap, base, size, lower)
                    threshold[own] = heap[base]
            threshold_of_chunk[chunk] = threshold[first : first + CHUNK].min()
        row += 1
    return row, n


@compiled
def _push(heap: Any, base: int, size: int, value: Any) -> None:
    """Push ``value`` onto the min-heap of ``size`` keys at ``base``."""
    child = size
    while child > 0 and heap[base + (child - 1) // 2] > value:
        heap[base + child] = heap[base + (child - 1) // 2]
        child = (child - 1) // 2
    heap[base + child] = value


@compiled
def _replace_least(heap: Any, base: int, size: int, value: Any) -> None:
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and heap[base + child + 1] < heap[base + child]:
            child += 1
        if heap[base + child] >= value:
            break
        heap[base + parent] = heap[base + child]
        parent = child
    heap[base + parent] = value


@compiled
def _keep_reaching(
    row: Any, latent: Any, score: Any, upper: Any, held: int, threshold: Any, start: int
) -> int:
    n = 0
    for i in range(held):
        if upper[i] >= threshold[latent[i] - start]:
            row[n], latent[n], score[n], upper[n] = row[i], latent[i], score[i], upper[i]
            n += 1
    return n
