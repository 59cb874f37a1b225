"""One epoch of batches: which rows, read ahead, checked, converted.

A thread checks and maps coming chunks; the caller's makes the batches. A batch made ahead in a thread would
wait in memory for its turn: by then it has left the processor's cache, and reading was three times slower.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .order import EpochOrder
from .sharded_array import ShardedArray

CHUNKS_AHEAD = 4


@dataclass(frozen=True)
class BatchPlan:
    """Which rows make which batch. ``keep`` says which of some rows are wanted at all (None: every one)."""

    order: EpochOrder
    rows_per_batch: int
    start_batch: int
    drop_last: bool
    keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None

    def start(self) -> tuple[int, int]:
        """(window to start with, rows to skip from there)."""
        skip = self.start_batch * self.rows_per_batch
        if self.keep is not None:  # how many rows each window keeps is only known by looking
            return 0, skip
        if skip >= self.order.num_rows:
            return self.order.num_windows, 0
        return self.order.find(skip)


def iterate(
    array: ShardedArray, plan: BatchPlan, make: Callable[[NDArray[np.int64]], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The batches of ``plan``: ``make`` turns row numbers into a batch."""
    window, skip = plan.start()
    rest = np.empty(0, dtype=np.int64)
    unfinished: deque[tuple[int, NDArray[np.int64]]] = deque()  # (rows seen at its end, chunks) of windows
    seen = handed_out = 0
    with _Ahead(array, plan.order) as ahead:
        for current in range(window, plan.order.num_windows):
            rows = plan.order.rows(current)
            if plan.keep is not None:
                rows = rows[plan.keep(rows)]
            if skip >= len(rows):
                skip -= len(rows)
                continue
            rows, skip = rows[skip:], 0
            ahead.wait_for(current)
            rest = np.concatenate([rest, rows])
            seen += len(rows)
            unfinished.append((seen, plan.order.chunks(current)))
            while len(rest) >= plan.rows_per_batch:
                yield make(rest[: plan.rows_per_batch])
                rest = rest[plan.rows_per_batch :]
                handed_out += plan.rows_per_batch
            while unfinished and unfinished[0][0] <= handed_out:
                array.release(unfinished.popleft()[1].tolist())
        if len(rest) and not plan.drop_last:
            yield make(rest)
        for _, chunks in unfinished:
            array.release(chunks.tolist())


class _Ahead:
    """Checks and maps the chunks of coming windows in a thread."""

    def __init__(self, array: ShardedArray, order: EpochOrder) -> None:
        self._array = array
        self._order = order
        self._windows_ahead = max(1, CHUNKS_AHEAD // order.window_chunks)
        self._next = 0  # first window that was not given to the thread yet
        self._under_way: dict[int, list[Future[None]]] = {}

    def __enter__(self) -> "_Ahead":
        self._thread = ThreadPoolExecutor(1, "saecache-check")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def wait_for(self, window: int) -> None:
        """Until the chunks of ``window`` are ready; raises what is wrong with them."""
        last = min(window + self._windows_ahead, self._order.num_windows - 1)
        for number in range(max(self._next, window), last + 1):
            chunks = self._order.chunks(number).tolist()
            self._under_way[number] = [self._thread.submit(self._array.prepare, chunk) for chunk in chunks]
        self._next = last + 1
        for future in self._under_way.pop(window):
            future.result()
