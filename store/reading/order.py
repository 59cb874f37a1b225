"""The order in which an epoch hands out rows: a pure function of (number of rows, seed, epoch).

Epoch 0 is the stored order, which is already a uniform shuffle. A later epoch puts the chunks in a random
order, takes them in windows of ``WINDOW_CHUNKS``, and puts the rows of each window in a random order. The
order of the chunks goes through ``GROUP_SHARDS`` randomly chosen shards at a time, so that shards which come
over a network are needed a few at a time too.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..keys import epoch_permutation, window_keys

WINDOW_CHUNKS = 16
GROUP_SHARDS = 4


@dataclass(frozen=True)
class EpochOrder:
    """The rows 0 to ``num_rows`` - 1, window after window; ``epoch`` 0 is the stored order.

    ``shard_chunks`` is how many chunks a shard has; None permutes the chunks without regard to shards.
    """

    num_rows: int
    chunk_rows: int
    seed: int
    epoch: int
    shard_chunks: int | None = None

    @property
    def window_chunks(self) -> int:
        return WINDOW_CHUNKS if self.epoch else 1

    @property
    def group_shards(self) -> int:
        """Shards whose chunks are mixed: at least enough of them for a window of chunks."""
        return max(GROUP_SHARDS, -(-WINDOW_CHUNKS // (self.shard_chunks or WINDOW_CHUNKS)))

    @property
    def num_windows(self) -> int:
        return -(-self.num_rows // (self.chunk_rows * self.window_chunks))

    def chunks(self, window: int) -> NDArray[np.int64]:
        """Numbers of the chunks of a window."""
        first = window * self.window_chunks
        if self.epoch == 0:
            return np.arange(first, first + 1)
        return self._permuted[first : first + self.window_chunks]

    def chunks_from(self, window: int) -> NDArray[np.int64]:
        """Numbers of the chunks of a window and of all that follow it."""
        first = window * self.window_chunks
        if self.epoch == 0:
            return np.arange(first, -(-self.num_rows // self.chunk_rows))
        return self._permuted[first:]

    def rows(self, window: int) -> NDArray[np.int64]:
        """Row numbers of a window in the order in which they are handed out."""
        starts = self.chunks(window)[:, None] * self.chunk_rows
        numbers = (starts + np.arange(self.chunk_rows)).reshape(-1)
        numbers = numbers[numbers < self.num_rows]
        if self.epoch == 0:
            return numbers
        return numbers[np.argsort(window_keys(self.seed, self.epoch, numbers))]

    def find(self, row: int) -> tuple[int, int]:
        """(window, place in it) of the row that is handed out as number ``row``."""
        window = int(np.searchsorted(self._window_ends, row, side="right"))
        return window, row - (int(self._window_ends[window - 1]) if window else 0)

    def places(self, window: int) -> range:
        """The places in the epoch at which the rows of a window are handed out."""
        return range(int(self._window_ends[window - 1]) if window else 0, int(self._window_ends[window]))

    @cached_property
    def _permuted(self) -> NDArray[np.int64]:
        count = -(-self.num_rows // self.chunk_rows)
        return epoch_permutation(self.seed, self.epoch, count, self.shard_chunks, self.group_shards)

    @cached_property
    def _window_ends(self) -> NDArray[np.int64]:
        """Rows handed out up to the end of each window: only the window with the last chunk may be short."""
        ends = np.arange(1, self.num_windows + 1) * (self.chunk_rows * self.window_chunks)
        missing = -self.num_rows % self.chunk_rows
        short = self.num_windows - 1
        if self.epoch and missing:
            short = int(np.flatnonzero(self._permuted == len(self._permuted) - 1)[0]) // self.window_chunks
        ends[short:] -= missing
        ends[-1:] = self.num_rows
        return ends
