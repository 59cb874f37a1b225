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
    """Which rows make which batch.

    Attributes:
        order: of all rows of the epoch.
        num_rows: how many of them are handed out.
        keep: selects them; None: all of them.
        own: the rows of every batch that are handed out; None: all of them.
        pieces: hand out the rows of a batch in so many pieces of equal size.
    """

    order: EpochOrder
    num_rows: int
    rows_per_batch: int
    start_batch: int
    drop_last: bool
    keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
    own: range | None = None
    pieces: int = 1

    @property
    def in_stored_order(self) -> bool:
        """Every row, one after the other."""
        return self.order.epoch == 0 and self.keep is None

    @property
    def piece_rows(self) -> int:
        """The rows of a piece, but for the last batch where that is shorter."""
        return len(self._own) // self.pieces

    @property
    def _own(self) -> range:
        return range(self.rows_per_batch) if self.own is None else self.own

    @property
    def _first(self) -> int:
        """The place in the epoch of the first row that may be handed out."""
        return self.start_batch * self.rows_per_batch

    @property
    def _end(self) -> int:
        """The end of the places of rows that may be handed out."""
        return self.num_rows - (self.num_rows % self.rows_per_batch if self.drop_last else 0)

    def shards(self, chunks_per_shard: int) -> list[int]:
        """Numbers of the shards, in the order in which they are first needed."""
        if self.own is None:
            chunks = self.order.chunks_from(self._first_window())
        else:
            chunks = np.concatenate([_NONE, *(self.order.chunks(window) for window in self.windows())])
        of_chunks = chunks // chunks_per_shard
        _, first_places = np.unique(of_chunks, return_index=True)
        in_order: list[int] = of_chunks[np.sort(first_places)].tolist()
        return in_order

    def _first_window(self) -> int:
        if self.keep is not None:  # only reading tells how many rows each window keeps
            return 0
        if self._first >= self.order.num_rows:
            return self.order.num_windows
        return self.order.find(self._first)[0]

    def ranges(self) -> Iterator[range]:
        """The places in the epoch of the rows of each piece."""
        own, piece_rows = self._own, self.piece_rows
        for first in range(self._first, self._end, self.rows_per_batch):
            last = min(first + own.stop, self._end)
            for start in range(first + own.start, last, piece_rows):
                yield range(start, min(start + piece_rows, last))

    def windows(self) -> Iterator[int]:
        """The windows that hold rows to hand out, in order. If rows are left out, all windows."""
        if self.in_stored_order:  # a window is a chunk
            after, size = 0, self.order.chunk_rows
            for places in self.ranges():
                needed = range(max(after, places.start // size), -(-places.stop // size))
                yield from needed
                after = needed.stop
            return
        for window in range(self._first_window(), self.order.num_windows):
            places = self.order.places(window)
            if self.keep is not None or self._own_before(places.start) < self._own_before(places.stop):
                yield window

    def _own_before(self, place: int) -> int:
        """How many rows of their batches are handed out before a place in the epoch."""
        batches, rest = divmod(place, self.rows_per_batch)
        return batches * len(self._own) + min(max(rest - self._own.start, 0), len(self._own))

    def choose(self, rows: NDArray[np.int64], place: int) -> NDArray[np.int64]:
        """Those of ``rows``, whose places in the epoch begin with ``place``, that are handed out."""
        first = max(0, self._first - place)
        rows, place = rows[first : max(first, self._end - place)], place + first
        if self.own is None:
            return rows
        within = np.arange(place, place + len(rows)) % self.rows_per_batch
        return rows[(within >= self.own.start) & (within < self.own.stop)]


def iter_batches(
    array: ShardedArray, plan: BatchPlan, make: Callable[[RowNumbers, Executor], T]
) -> Generator[T, None, None]:
    """The batches of ``plan``: ``make`` turns row numbers into a batch, and may use the threads."""
    with _Ahead(array, plan) as ahead:
        for numbers in _in_stored_order(plan, ahead) if plan.in_stored_order else _permuted(plan, ahead):
            yield make(numbers, ahead.threads)


def _in_stored_order(plan: BatchPlan, ahead: "_Ahead") -> Iterator[RowNumbers]:
    """Ranges of rows. Row numbers would cost a third of the time that copying the rows takes."""
    size = plan.order.chunk_rows
    finished = ready = 0
    for rows in plan.ranges():
        first, end = rows.start // size, -(-rows.stop // size)
        ahead.release(range(finished, min(first, ready)))  # where rows are not handed out in between
        for chunk in range(max(ready, first), end):
            ahead.wait_for(chunk)
        ready = end
        yield rows
        finished = rows.stop // size
        ahead.release(range(first, finished))
    ahead.release(range(finished, ready))


def _permuted(plan: BatchPlan, ahead: "_Ahead") -> Iterator[RowNumbers]:
    """Windows of rows in an order of their own, or with rows left out."""
    rest = np.empty(0, dtype=np.int64)
    unfinished: deque[tuple[int, NDArray[np.int64]]] = deque()  # (rows seen at its end, chunks) of windows
    seen = handed_out = kept = 0
    for window in plan.windows():
        rows = ahead.wait_for(window)
        place = plan.order.places(window).start if plan.keep is None else kept
        kept += len(rows)
        rows = plan.choose(rows, place)
        rest = np.concatenate([rest, rows])
        seen += len(rows)
        unfinished.append((seen, plan.order.chunks(window)))
        while len(rest) >= plan.piece_rows:
            yield rest[: plan.piece_rows]
            rest = rest[plan.piece_rows :]
            handed_out += plan.piece_rows
        while unfinished and unfinished[0][0] <= handed_out:
            ahead.release(unfinished.popleft()[1])
    if len(rest):
        yield rest
    for _, chunks in unfinished:
        ahead.release(chunks)


class _Ahead:
    """Checks the chunks of coming windows, and puts their rows in order, in threads."""

    def __init__(self, array: ShardedArray, plan: BatchPlan) -> None:
        self._array = array
        self._plan = plan
        self._windows_ahead = max(1, CHUNKS_AHEAD // plan.order.window_chunks)
        self._needed = plan.windows()  # those that were not given to the thread yet
        self._coming: deque[int] = deque()  # those that were, after the one that was waited for last
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
        while self._coming and self._coming[0] <= window:
            self._coming.popleft()
        while len(self._coming) < self._windows_ahead and (number := next(self._needed, None)) is not None:
            if not (self._plan.in_stored_order and self._array.is_checked(number)):
                self._under_way[number] = self._thread.submit(self._window, number)
            if number > window:
                self._coming.append(number)
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
