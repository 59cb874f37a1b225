"""From spilled blocks to rows in stored order: ascending shuffle keys, one bucket after the other.

At least two buckets are in memory: one is handed out while a thread sorts the next.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding.records import RecordLayout
from ..encoding.stored_rows import StoredRows
from ..keys import row_keys
from .blocks import SMALL_BUCKET_BYTES, Block
from .spill_reader import SpillReader

_MOST_BUFFERS = 4
_HELDOUT_BYTES = 8 << 20


@dataclass(frozen=True)
class _BucketRange:
    """A range of the sorted rows of one bucket of one spill file, small enough for memory."""

    hook: int
    bucket: int
    start: int
    stop: int


@dataclass
class _Buffer:
    """Memory for a range, and the thread's work of filling it."""

    rows: StoredRows
    part: _BucketRange | None = None
    filling: futures.Future[None] | None = None


class ShuffledSpill:
    """Reads the spill in stored order. A bucket that outgrew ``limit_bytes`` is read in several passes.

    Args:
        folders: of the spill, one for each process that wrote rows.
        seed: of the shuffle.
        num_buckets: of the spill.
        limit_bytes: bound on a buffer; there are two, or up to four where they are small.
        in_use: the work that must end before rows that were yielded earlier may be overwritten.
        in_memory: blocks of rows that were not spilled; they come after those that were.
        record_bytes: of the widest hook.
        drop_pages: whether the system may drop pages of the spill once they were read.
        rows_before: training rows of former buckets, which the folders do not have.
        in_reading_order: whether held-out rows arrived in reading order in each folder, as from one process.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        seed: int,
        num_buckets: int,
        limit_bytes: int,
        in_use: Callable[[], Iterable[futures.Future[Any]]] = lambda: (),
        in_memory: Sequence[Block] = (),
        record_bytes: int = SMALL_BUCKET_BYTES,
        drop_pages: bool = True,
        rows_before: int = 0,
        in_reading_order: bool = True,
    ) -> None:
        most_rows = min(limit_bytes, SMALL_BUCKET_BYTES) // record_bytes
        self._spill = SpillReader(folders, num_buckets, in_memory, most_rows=most_rows, drop_pages=drop_pages)
        self._seed = seed
        self._heldout = num_buckets = self._spill.num_buckets
        self._limit_bytes = limit_bytes
        self._in_use = in_use
        self._bucket_rows = self._spill.bucket_rows()
        self._bucket_ends = rows_before + np.cumsum(self._bucket_rows[:num_buckets])
        self._ranks: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._in_reading_order = in_reading_order and len(folders) == 1
        self._buffers: deque[_Buffer] = deque()  # the one that is handed out comes first
        self._thread = futures.ThreadPoolExecutor(1, "saecache-sort")  # all reading is done there

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._spill.close()

    def tokens(self, split: str, start: int, stop: int) -> NDArray[np.uint64]:
        """Token indices uint64 [stop - start] of the stored rows ``start:stop`` of a split."""
        return self._thread.submit(self._tokens, split, start, stop).result()

    def rows(
        self, hook: int, layout: RecordLayout, split: str, start: int, stop: int
    ) -> Iterator[StoredRows]:
        """The stored rows ``start:stop`` of a hook, in order, some at a time.

        Yielded rows may be overwritten once the next are requested and the work that ``in_use`` then returns
        is done.
        """
        if split == "heldout":  # stays in reading order
            step = max(1, min(self._limit_bytes, _HELDOUT_BYTES) // layout.record_bytes)
            for first in range(start, stop, step):
                yield self._thread.submit(
                    self._heldout_rows, hook, layout, first, min(first + step, stop)
                ).result()
            return
        if start == stop:
            return
        bucket = int(np.searchsorted(self._bucket_ends, start, side="right"))
        part: _BucketRange | None = self._part(hook, bucket, start - self._first_row(bucket), layout)
        while start < stop:
            assert part is not None
            first = self._first_row(part.bucket)
            in_order = self._sorted(part, layout)
            end = min(stop, first + part.stop)
            yield in_order[start - first - part.start : end - first - part.start]
            start, part = end, self._part_after(part, layout)

    def _first_row(self, bucket: int) -> int:
        return int(self._bucket_ends[bucket] - self._bucket_rows[bucket])

    def _part(self, hook: int, bucket: int, row: int, layout: RecordLayout) -> _BucketRange:
        """The part with a row of a bucket."""
        limit = max(1, self._limit_bytes // layout.record_bytes)
        number = row // limit
        stop = min((number + 1) * limit, int(self._bucket_rows[bucket]))
        return _BucketRange(hook, bucket, number * limit, stop)

    def _part_after(self, part: _BucketRange, layout: RecordLayout) -> _BucketRange | None:
        bucket, row = part.bucket, part.stop
        while row == self._bucket_rows[bucket]:
            bucket, row = bucket + 1, 0
            if bucket == self._heldout:
                return None
        return self._part(part.hook, bucket, row, layout)

    def _sorted(self, part: _BucketRange, layout: RecordLayout) -> StoredRows:
        """The sorted rows of a part; those of the next are then under way in the others."""
        if not self._buffers or self._buffers[0].rows.layout != layout:
            self._buffers = self._room_for(layout)
        if any(buffer.part == part for buffer in self._buffers):
            while self._buffers[0].part != part:
                self._buffers.rotate(-1)
        current = self._buffers[0]
        wanted: _BucketRange | None = part
        for buffer in self._buffers:
            if wanted is None:
                break
            if buffer.part != wanted:
                self._fill(buffer, wanted)
            wanted = self._part_after(wanted, layout)
        assert current.filling is not None
        current.filling.result()
        return current.rows[: part.stop - part.start]

    def _room_for(self, layout: RecordLayout) -> "deque[_Buffer]":
        """Buffers for the largest part of a hook, as many as fit."""
        largest = int(self._bucket_rows[:-1].max(initial=1))
        rows = max(1, min(largest, self._limit_bytes // layout.record_bytes))
        number = min(_MOST_BUFFERS, max(2, 2 * self._limit_bytes // (rows * layout.record_bytes)))
        return deque(_Buffer(StoredRows.empty(layout, rows)) for _ in range(number))

    def _fill(self, buffer: _Buffer, part: _BucketRange) -> None:
        """Let the thread put the sorted rows of a range into a buffer, once nobody reads it any more."""
        in_use = list(self._in_use())
        rows = buffer.rows[: part.stop - part.start]

        def fill() -> None:
            futures.wait(in_use)
            self._sort_into(rows, part)

        buffer.part, buffer.filling = part, self._thread.submit(fill)

    def _sort_into(self, rows: StoredRows, part: _BucketRange) -> None:
        ranks = self._ranks_of(part.bucket)
        record_bytes = rows.layout.record_bytes
        if part.bucket + 1 < self._heldout:
            self._spill.will_need(part.hook, part.bucket + 1, record_bytes)
        arrived = 0
        for records, picks in self._spill.records(part.hook, part.bucket, record_bytes):
            rows.place(records, picks, ranks[arrived : arrived + len(picks)] - part.start)
            arrived += len(picks)
        if part.stop == self._bucket_rows[part.bucket]:
            self._spill.was_read(part.hook, part.bucket, record_bytes)

    def _heldout_rows(self, hook: int, layout: RecordLayout, start: int, stop: int) -> StoredRows:
        rows = StoredRows.empty(layout, stop - start)
        for first, places in self._heldout_arrivals(start, stop):
            arrived, last = 0, first + len(places)
            for records, picks in self._spill.records(hook, self._heldout, layout.record_bytes, first, last):
                rows.place(records, picks, places[arrived : arrived + len(picks)])
                arrived += len(picks)
        return rows

    def _heldout_arrivals(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Where the held-out rows ``start:stop`` arrived: pairs of a place among all that arrived, and the
        places in ``start:stop`` of the rows that arrived from there on.

        Those of one block arrived in reading order, so they lie side by side.
        """
        if self._in_reading_order:
            yield start, np.arange(stop - start)
            return
        arrivals = self._heldout_order[start:stop]
        blocks = np.searchsorted(np.cumsum(self._spill.heldout_rows), arrivals, side="right")
        for block in np.unique(blocks):
            places = np.flatnonzero(blocks == block)
            yield int(arrivals[places[0]]), places

    @cached_property
    def _heldout_order(self) -> NDArray[np.int64]:
        """Held-out rows in reading order, each as its place among all that arrived."""
        return np.argsort(self._spill.tokens(self._heldout))

    def _tokens(self, split: str, start: int, stop: int) -> NDArray[np.uint64]:
        pieces = [np.empty(0, np.uint64)]
        if split == "heldout":
            token = self._spill.tokens(self._heldout)
            return (token if self._in_reading_order else token[self._heldout_order])[start:stop]
        bucket = int(np.searchsorted(self._bucket_ends, start, side="right"))
        while start < stop:
            first, end = self._first_row(bucket), int(self._bucket_ends[bucket])
            token = self._spill.tokens(bucket)
            order = np.argsort(row_keys(self._seed, token))
            pieces.append(token[order[start - first : stop - first]])
            start, bucket = end, bucket + 1
        return np.concatenate(pieces)

    def _ranks_of(self, bucket: int) -> NDArray[np.int64]:
        """Place of each row of a bucket among its sorted rows, in the order in which the rows arrived."""
        if self._ranks[0] != bucket:
            keys = row_keys(self._seed, self._spill.tokens(bucket))
            ranks = np.empty(len(keys), np.int64)
            ranks[np.argsort(keys)] = np.arange(len(keys))  # keys are distinct: there are no ties
            self._ranks = bucket, ranks
        return self._ranks[1]
