"""From spilled blocks to rows in stored order: ascending shuffle keys, one bucket in memory at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..config import StorageConfig
from ..encoding.copying import scatter_records
from ..encoding.records import RecordLayout
from ..keys import row_keys

DEFAULT_BUCKETS = 256
MAX_BUCKETS = 1 << 14
SMALL_BUCKET_BYTES = 32 << 20

_READ_BYTES = 4 << 20


def bucket_of(keys: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """The top bits of each key: buckets are ranges of keys. ``num_buckets`` is a power of two."""
    bits = num_buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(keys.shape, dtype=np.int64)
    return (keys >> np.uint64(64 - bits)).astype(np.int64)


def choose_buckets(planned_rows: int | None, record_bytes: int, storage: StorageConfig) -> int:
    """How many buckets, a power of two, so that one of the widest hook fits in a quarter of the memory.

    A small cache does not take that much: its buckets are small ones, up to 64 of them.
    """
    if planned_rows is None:
        return DEFAULT_BUCKETS
    planned = planned_rows * record_bytes
    bucket_bytes = min(storage.memory_bytes // 4, max(SMALL_BUCKET_BYTES, planned // 64))
    wanted = -(-planned // bucket_bytes)
    return int(min(1 << max(0, (wanted - 1).bit_length()), MAX_BUCKETS))


@dataclass(frozen=True)
class _Part:
    """A range of the sorted rows of one bucket of one spill file, small enough for memory."""

    name: str
    bucket: int
    start: int
    stop: int


class ShuffledSpill:
    """Reads the spill in stored order. A bucket that outgrew ``limit_bytes`` is read in several passes."""

    def __init__(self, folder: Path, seed: int, num_buckets: int, limit_bytes: int) -> None:
        self._folder = folder
        self._seed = seed
        self._heldout = num_buckets
        self._limit_bytes = limit_bytes
        segments = np.fromfile(folder / "segments", "<u4").reshape(-1, num_buckets + 1)
        self._counts = segments.T.copy()  # [buckets + 1, blocks]
        block_rows = self._counts.sum(axis=0, dtype=np.int64)
        self._block_starts = np.cumsum(block_rows) - block_rows
        self._bucket_ends = np.cumsum(self._counts[:num_buckets].sum(axis=1, dtype=np.int64))
        self._files: dict[str, BinaryIO] = {}
        self._ranks: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._loaded: _Part | None = None
        self._buffer = np.empty((0, 1), np.uint8)
        self._read = np.empty(_READ_BYTES, np.uint8)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def tokens(self, split: str, start: int, stop: int) -> NDArray[np.uint64]:
        """Token indices uint64 [stop - start] of the stored rows ``start:stop`` of a split."""
        blocks = [
            block.view(np.uint64)[:, 0].copy() for block in self._blocks("token", 8, split, start, stop)
        ]
        return np.concatenate([np.empty(0, np.uint64), *blocks])

    def records(
        self, hook: int, layout: RecordLayout, split: str, start: int, stop: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Records uint8 [n, record_bytes] of the stored rows ``start:stop``, in order, some at a time.

        What is yielded is overwritten when the next is asked for.
        """
        return self._blocks(f"hook.{hook}", layout.record_bytes, split, start, stop)

    def _blocks(
        self, name: str, record_bytes: int, split: str, start: int, stop: int
    ) -> Iterator[NDArray[np.uint8]]:
        if split == "heldout":  # stays in the order in which it arrived
            yield from self._arrived(self._open(name), self._heldout, record_bytes, start, stop)
            return
        limit = max(1, self._limit_bytes // record_bytes)
        bucket = int(np.searchsorted(self._bucket_ends, start, side="right"))
        while start < stop:
            first = int(self._bucket_ends[bucket - 1]) if bucket else 0
            size = int(self._bucket_ends[bucket]) - first
            while start < min(stop, first + size):
                number = (start - first) // limit
                part = _Part(name, bucket, number * limit, min((number + 1) * limit, size))
                self._load(part, record_bytes)
                end = min(stop, first + part.stop)
                yield self._buffer[start - first - part.start : end - first - part.start]
                start = end
            bucket += 1

    def _load(self, part: _Part, record_bytes: int) -> None:
        """Fill the buffer with the sorted rows of a part."""
        if part == self._loaded:
            return
        self._loaded = None
        ranks = self._ranks_of(part.bucket)
        if self._buffer.shape[1] != record_bytes or len(self._buffer) < part.stop - part.start:
            self._buffer = np.empty((part.stop - part.start, record_bytes), np.uint8)
        file = self._open(part.name)
        self._will_need(file, part.bucket, record_bytes)
        arrived = 0
        for block in self._arrived(file, part.bucket, record_bytes):
            rank = ranks[arrived : arrived + len(block)] - part.start
            scatter_records(block, rank, self._buffer[: part.stop - part.start])
            arrived += len(block)
        self._will_need(file, part.bucket + 1, record_bytes)
        self._loaded = part

    def _ranks_of(self, bucket: int) -> NDArray[np.int64]:
        """Place of each row of a bucket among its sorted rows, in the order in which the rows arrived."""
        if self._ranks[0] != bucket:
            file = self._open("token")
            token = [block.view(np.uint64)[:, 0].copy() for block in self._arrived(file, bucket, 8)]
            keys = row_keys(self._seed, np.concatenate([np.empty(0, np.uint64), *token]))
            ranks = np.empty(len(keys), np.int64)
            ranks[np.argsort(keys)] = np.arange(len(keys))  # keys are distinct: there are no ties
            self._ranks = bucket, ranks
        return self._ranks[1]

    def _arrived(
        self, file: BinaryIO, bucket: int, record_bytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """The records ``start:stop`` of a bucket [n, record_bytes] as they arrived, some at a time."""
        step = max(1, _READ_BYTES // record_bytes)
        if len(self._read) < step * record_bytes:
            self._read = np.empty(step * record_bytes, np.uint8)
        seen = 0  # rows of the bucket in the segments before
        for position, count in self._segments(bucket):
            last = count if stop is None else min(count, stop - seen)
            for row in range(max(0, start - seen), last, step):
                file.seek((position + row) * record_bytes)
                block = self._read[: min(step, last - row) * record_bytes]
                _read_exactly(file, block)
                yield block.reshape(-1, record_bytes)
            seen += count

    def _segments(self, bucket: int) -> list[tuple[int, int]]:
        """(first spill row, rows) of the bucket in each block that has some."""
        before = self._counts[:bucket].sum(axis=0, dtype=np.int64)
        segments = zip((self._block_starts + before).tolist(), self._counts[bucket].tolist(), strict=True)
        return [(start, count) for start, count in segments if count]

    def _will_need(self, file: BinaryIO, bucket: int, record_bytes: int) -> None:
        """Have the system read a bucket's segments ahead, all at once, where it can be asked to."""
        if hasattr(os, "posix_fadvise") and bucket < self._heldout:
            for start, count in self._segments(bucket):
                offset, size = start * record_bytes, count * record_bytes
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def _open(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("rb", buffering=0)
        return self._files[name]


def _read_exactly(file: BinaryIO, target: NDArray[np.uint8]) -> None:
    view = target.data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        assert count, "a spill file is shorter than its journal says"
        view = view[count:]
