"""The order in which an epoch hands out rows: a pure function of (number of rows, seed, epoch).

Epoch 0 is the stored order, which is already a uniform shuffle. A later epoch permutes the chunks, takes them in
windows of ``WINDOW_CHUNKS``, and permutes the rows of each window.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .keys import epoch_permutation, window_keys

WINDOW_CHUNKS = 16


@dataclass(frozen=True)
class EpochOrder:
    """Windows of rows, one after the other; ``epoch`` is 0 for reading in stored order."""

    num_rows: int
    chunk_rows: int
    seed: int
    epoch: int

    @property
    def window_rows(self) -> int:
        return self.chunk_rows * WINDOW_CHUNKS

    @property
    def num_windows(self) -> int:
        return -(-self.num_rows // self.window_rows)

    @cached_property
    def _chunks(self) -> NDArray[np.int64]:
        count = -(-self.num_rows // self.chunk_rows)
        if self.epoch == 0:
            return np.arange(count)
        return epoch_permutation(self.seed, self.epoch, count)

    @cached_property
    def window_starts(self) -> NDArray[np.int64]:
        """First place in the epoch of each window, and the total at the end: int64 [num_windows + 1]."""
        sizes = np.minimum(self.chunk_rows, self.num_rows - self._chunks * self.chunk_rows)
        per_window = np.add.reduceat(sizes, np.arange(0, len(sizes), WINDOW_CHUNKS)) if len(sizes) else sizes
        return np.concatenate([[0], np.cumsum(per_window)])

    def window(self, number: int) -> NDArray[np.int64]:
        """Row numbers of one window in the order they are handed out."""
        chunks = self._chunks[number * WINDOW_CHUNKS : (number + 1) * WINDOW_CHUNKS]
        rows = (chunks[:, None] * self.chunk_rows + np.arange(self.chunk_rows)).reshape(-1)
        rows = rows[rows < self.num_rows]
        if self.epoch == 0:
            return rows
        return rows[np.argsort(window_keys(self.seed, self.epoch, rows))]
