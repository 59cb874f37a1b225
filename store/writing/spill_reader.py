"""A spill read back, bucket by bucket: see ``spill.py`` for its files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_READ_BYTES = 1 << 20


class SpillReader:
    """What the buckets of a spill hold, in the order in which it arrived. Not for several threads at once."""

    def __init__(self, folder: Path, num_buckets: int) -> None:
        self._folder = folder
        segments = np.fromfile(folder / "segments", "<u4").reshape(-1, num_buckets + 1)
        self._counts = segments.T.copy()  # [buckets + 1, blocks]
        block_rows = self._counts.sum(axis=0, dtype=np.int64)
        self._block_starts = np.cumsum(block_rows) - block_rows
        self._before = 0, np.zeros_like(block_rows)  # a bucket, and the rows of each block in those before it
        self._files: dict[str, BinaryIO] = {}
        self._buffer = np.empty(_READ_BYTES, np.uint8)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def bucket_rows(self) -> NDArray[np.int64]:
        """Rows of each bucket [buckets + 1]; the last one is of what is held out."""
        rows: NDArray[np.int64] = self._counts.sum(axis=1, dtype=np.int64)
        return rows

    def tokens(self, bucket: int) -> NDArray[np.uint64]:
        """Token indices of the rows of a bucket."""
        file, segments = self._open("token"), self._segments(bucket)
        token = np.empty(sum(count for _, count in segments), np.uint64)
        arrived = 0
        for start, count in segments:
            file.seek(start * token.itemsize)
            _read_exactly(file, token[arrived : arrived + count].view(np.uint8))
            arrived += count
        return token

    def records(
        self, name: str, bucket: int, record_bytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """The records ``start:stop`` of a bucket [n, record_bytes], some at a time, each time overwritten."""
        file = self._open(name)
        step = max(1, _READ_BYTES // record_bytes)
        if len(self._buffer) < step * record_bytes:
            self._buffer = np.empty(step * record_bytes, np.uint8)
        seen = 0  # rows of the bucket in the segments before
        for position, count in self._segments(bucket):
            last = count if stop is None else min(count, stop - seen)
            for row in range(max(0, start - seen), last, step):
                file.seek((position + row) * record_bytes)
                block = self._buffer[: min(step, last - row) * record_bytes]
                _read_exactly(file, block)
                yield block.reshape(-1, record_bytes)
            seen += count

    def will_need(self, name: str, bucket: int, record_bytes: int) -> None:
        """Have the system read the segments of a bucket ahead, all at once, where it can be asked to."""
        if hasattr(os, "posix_fadvise"):
            descriptor = self._open(name).fileno()
            for start, count in self._segments(bucket):
                os.posix_fadvise(
                    descriptor, start * record_bytes, count * record_bytes, os.POSIX_FADV_WILLNEED
                )

    def was_read(self, name: str, bucket: int, record_bytes: int) -> None:
        """Let the memory of what was read go to what is written now, where the system can be told.

        From the start of each block on: a piece of the page cache goes only as a whole, and one may hold the
        segments of several buckets.
        """
        if hasattr(os, "posix_fadvise"):
            descriptor = self._open(name).fileno()
            starts, segments = self._block_starts, self._segments(bucket)
            blocks = starts[np.searchsorted(starts, [start for start, _ in segments], side="right") - 1]
            for first, (start, count) in zip(blocks.tolist(), segments, strict=True):
                offset, size = first * record_bytes, (start + count - first) * record_bytes
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)

    def _segments(self, bucket: int) -> list[tuple[int, int]]:
        """(first spill row, rows) of the bucket in each block that has some."""
        last, before = self._before
        if bucket < last:
            last, before = 0, np.zeros_like(before)
        before = before + self._counts[last:bucket].sum(axis=0, dtype=np.int64)
        self._before = bucket, before
        segments = zip((self._block_starts + before).tolist(), self._counts[bucket].tolist(), strict=True)
        return [(start, count) for start, count in segments if count]

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
