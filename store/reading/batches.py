"""One epoch of batches: which rows each holds, and chunks that are checked before their rows are needed.

A thread checks and maps coming chunks; the caller's thread makes the batches. A batch made ahead in a thread
would wait in memory for its turn and leave the processor's cache: reading was three times slower then. Only
batches for another device are made ahead (:mod:`.device_batches`).
"""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .order import EpochOrder
from .sharded_array import RowNumbers, ShardedArray

CHUNKS_AHEAD = 4

_NONE = np.empty(0, np.int64)

T = TypeVar("T")


@dataclass(frozen=True)
class BatchPlan:
    """Which rows make which batch. ``keep`` selects the rows to hand out (None: all of them)."""

    order: EpochOrder
    rows_per_batch: int
    start_batch: int
    drop_last: bool
    keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None

    @property
    def in_stored_order(self) -> bool:
        """Every row, one after the other."""
        return self.order.epoch == 0 and self.keep is None

    def shards(self, chunks_per_shard: int) -> list[int]:
        """Numbers of the shards, in the order in which they are first needed."""
        of_chunks = self.order.chunks_from(self.start()[0]) // chunks_per_shard
        _, first_places = np.unique(of_chunks, return_index=True)
        in_order: list[int] = of_chunks[np.sort(first_places)].tolist()
        return in_order

    def start(self) -> tuple[int, int]:
        """(window to start with, rows to skip from there)."""
        skip = self.start_batch * self.rows_per_batch
        if self.keep is not None:  # only reading tells how many rows each window keeps
            return 0, skip
        if skip >= self.order.num_rows:
            return self.order.num_windows, 0
        return self.order.find(skip)


def iter_batches(
    array: ShardedArray, plan: BatchPlan, make: Callable[[RowNumbers, Executor], T]
) -> Generator[T, None, None]:
    """The batches of ``plan``: ``make`` turns row numbers into a batch, and may use the threads."""
    with _Ahead(array, plan) as ahead:
        for numbers in _in_stored_order(plan, ahead) if plan.in_stored_order else _permuted(plan, ahead):
            yield make(numbers, ahead.threads)


def _in_stored_order(plan: BatchPlan, ahead: "_Ahead") -> Iterator[RowNumbers]:
    """Ranges of rows. Row numbers would cost a third of the time that copying the rows takes."""
    size, num_rows, chunk_rows = plan.rows_per_batch, plan.order.num_rows, plan.order.chunk_rows
    first = plan.start_batch * size
    finished = ready = first // chunk_rows
    while first < num_rows and (first + size <= num_rows or not plan.drop_last):
        last = min(first + size, num_rows)
        while ready * chunk_rows < last:
            ahead.wait_for(ready)
            ready += 1
        yield range(first, last)
        ahead.release(range(finished, last // chunk_rows))
        first, finished = last, last // chunk_rows
    ahead.release(range(finished, ready))


def _permuted(plan: BatchPlan, ahead: "_Ahead") -> Iterator[RowNumbers]:
    """Windows of rows in an order of their own, or with rows left out."""
    window, skip = plan.start()
    rest = np.empty(0, dtype=np.int64)
    unfinished: deque[tuple[int, NDArray[np.int64]]] = deque()  # (rows seen at its end, chunks) of windows
    seen = handed_out = 0
    for current in range(window, plan.order.num_windows):
        rows = ahead.wait_for(current)
        if skip >= len(rows):
            skip -= len(rows)
            continue
        rows, skip = rows[skip:], 0
        rest = np.concatenate([rest, rows])
        seen += len(rows)
        unfinished.append((seen, plan.order.chunks(current)))
        while len(rest) >= plan.rows_per_batch:
            yield rest[: plan.rows_per_batch]
            rest = rest[plan.rows_per_batch :]
            handed_out += plan.rows_per_batch
        while unfinished and unfinished[0][0] <= handed_out:
            ahead.release(unfinished.popleft()[1])
    if len(rest) and not plan.drop_last:
        yield rest
    for _, chunks in unfinished:
        ahead.release(chunks)


class _Ahead:
    """Checks the chunks of coming windows, and puts their rows in order, in threads."""

    def __init__(self, array: ShardedArray, plan: BatchPlan) -> None:
        self._array = array
        self._plan = plan
        self._windows_ahead = max(1, CHUNKS_AHEAD // plan.order.window_chunks)
        self._next = 0  # first window that was not given to the thread yet
        self._under_way: dict[int, Future[NDArray[np.int64]]] = {}
        self._prepared: set[int] = set()  # chunks that were not let go yet

    def __enter__(self) -> "_Ahead":
        self._thread = ThreadPoolExecutor(1, "saecache-check")
        self.threads = ThreadPoolExecutor(max(1, torch.get_num_threads()), "saecache-read")
        self._decoding = ThreadPoolExecutor(max(1, torch.get_num_threads()), "saecache-decode")
        return self

    def __exit__(self, *_: object, python_ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if python_ends():  # with an unfinished iterator left over: threads and modules are gone already
            return
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.threads.shutdown(wait=True, cancel_futures=True)
        self._decoding.shutdown(wait=True, cancel_futures=True)
        self._array.release(self._prepared)  # those that were read ahead in vain

    def wait_for(self, window: int) -> NDArray[np.int64]:
        """Wait until the chunks of ``window`` are ready; its rows in order (none in stored order).

        Raises:
            CorruptCacheError: a chunk is damaged.
        """
        order = self._plan.order
        last = min(window + self._windows_ahead, order.num_windows - 1)
        for number in range(max(self._next, window), last + 1):
            if not (self._plan.in_stored_order and self._array.is_checked(number)):
                self._under_way[number] = self._thread.submit(self._window, number)
        self._next = last + 1
        under_way = self._under_way.pop(window, None)
        return _NONE if under_way is None else under_way.result()

    def _window(self, number: int) -> NDArray[np.int64]:
        in_order = self._plan.in_stored_order
        chunks = self._plan.order.chunks(number).tolist()
        if not in_order:  # in order, the system reads ahead by itself
            for chunk in chunks:
                self._array.will_need(chunk)
        for chunk in chunks:
            self._prepared.add(chunk)
            self._array.prepare(chunk, read_ahead=not in_order, threads=self._decoding)
        if in_order:
            return _NONE
        rows = self._plan.order.rows(number)
        return rows if self._plan.keep is None else rows[self._plan.keep(rows)]

    def release(self, chunks: Iterable[int]) -> None:
        """Free the memory behind chunks that are no longer needed."""
        numbers = [int(chunk) for chunk in chunks]
        self._array.release(numbers)
        self._prepared.difference_update(numbers)
