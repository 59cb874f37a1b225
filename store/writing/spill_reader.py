"""Reading the spill: all rows of one bucket, from the files of every process and from memory."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from .blocks import Block, merge_buckets
from .spill import too_short

_READ_BYTES = 512 << 10  # which the processor's second cache still has when they are put in order

_InOrder = tuple[Block, NDArray[np.int64]]  # a block in memory, and its rows by bucket


class SpillReader:
    """Reads the rows of each bucket in their order of arrival. Not for several threads at once.

    Rows come from the files of one spill folder after the other, and then from blocks that are still in
    memory. Neighbouring buckets are read as one, while that has at most ``most_rows`` rows: ``num_buckets``
    says how many are left. Without ``drop_pages`` the system is not told to drop the pages that were read: it
    would write those that no sync has written, and other processes may still want them.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        num_buckets: int,
        in_memory: Sequence[Block] = (),
        *,
        most_rows: int = 0,
        drop_pages: bool = True,
    ) -> None:
        self._drop_pages = drop_pages
        self._sources: list[Path | _InOrder] = []  # of each block: its folder, or itself
        starts, counts = [], []
        for folder in folders:
            spilled = np.fromfile(folder / "segments", "<u4").reshape(-1, num_buckets + 1)
            rows = spilled.sum(axis=1, dtype=np.int64)
            if 8 * int(rows.sum()) != (folder / "token").stat().st_size:
                raise CorruptCacheError(
                    f"{folder / 'segments'}: not the numbers of the rows that were spilled"
                )
            self._sources += [folder] * len(spilled)
            starts.append(np.cumsum(rows) - rows)
            counts.append(spilled)
        self._sources += [(block, block.by_bucket()) for block in in_memory]
        starts.append(np.zeros(len(in_memory), np.int64))
        counts += [block.count_buckets(num_buckets)[None] for block in in_memory]
        self._counts = merge_buckets(np.vstack(counts).astype(np.int64), most_rows).T.copy()
        self.heldout_rows = self._counts[-1]
        """Held-out rows of each block, int64 [blocks], which lie in reading order."""
        self.num_buckets = len(self._counts) - 1  # _counts is [buckets + 1, blocks]
        self._block_starts = np.concatenate(starts)
        self._before = 0, np.zeros_like(self._block_starts)  # a bucket, and each block's rows in those before
        self._files: dict[Path, BinaryIO] = {}
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
        segments = self._segments(bucket)
        token = np.empty(sum(count for _, _, count in segments), np.uint64)
        arrived = 0
        for source, start, count in segments:
            target = token[arrived : arrived + count]
            if isinstance(source, Path):
                file = self._open(source / "token")
                file.seek(start * token.itemsize)
                _read_exactly(file, target.view(np.uint8))
            else:
                block, order = source
                target[:] = block.token[order[start : start + count]]
            arrived += count
        return token

    def records(
        self, hook: int, bucket: int, record_bytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """The records ``start:stop`` of a bucket, some at a time, each time overwritten.

        Yields:
            records [m, record_bytes], and which of them are meant, in order, int64 [n].
        """
        step = max(1, _READ_BYTES // record_bytes)
        if len(self._buffer) < step * record_bytes:
            self._buffer = np.empty(step * record_bytes, np.uint8)
        in_order = np.arange(step)
        seen = 0  # rows of the bucket in the segments before
        for source, position, count in self._segments(bucket):
            first, last = max(0, start - seen), count if stop is None else min(count, stop - seen)
            seen += count
            if first >= last:
                continue
            if not isinstance(source, Path):
                block, order = source
                yield block.records[hook], order[position + first : position + last]
                continue
            file = self._open(source / f"hook.{hook}")
            for row in range(first, last, step):
                file.seek((position + row) * record_bytes)
                read = self._buffer[: min(step, last - row) * record_bytes]
                _read_exactly(file, read)
                found = read.reshape(-1, record_bytes)
                yield found, in_order[: len(found)]

    def will_need(self, hook: int, bucket: int, record_bytes: int) -> None:
        """Ask the system, where it can be asked, to read all segments of a bucket ahead."""
        if hasattr(os, "posix_fadvise"):
            for folder, _, start, count in self._spilled_segments(bucket):
                descriptor = self._open(folder / f"hook.{hook}").fileno()
                os.posix_fadvise(
                    descriptor, start * record_bytes, count * record_bytes, os.POSIX_FADV_WILLNEED
                )

    def was_read(self, hook: int, bucket: int, record_bytes: int) -> None:
        """Tell the system, where it can be told, that the pages of a bucket are no longer needed.

        The advice begins at the start of each block: the system frees pieces of its cache only as a whole,
        and one may hold the segments of several buckets.
        """
        if self._drop_pages and hasattr(os, "posix_fadvise"):
            for folder, block_start, start, count in self._spilled_segments(bucket):
                descriptor = self._open(folder / f"hook.{hook}").fileno()
                offset, size = block_start * record_bytes, (start + count - block_start) * record_bytes
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)

    def _segments(self, bucket: int) -> list[tuple[Path | _InOrder, int, int]]:
        """(source, first row, rows) of the bucket in each block that has some.

        The first row of a block that was spilled is one of the folder's files; of one in memory it is a place
        in the order of its rows.
        """
        starts, counts = self._rows_of(bucket)
        return [each for each in zip(self._sources, starts, counts, strict=True) if each[2]]

    def _spilled_segments(self, bucket: int) -> list[tuple[Path, int, int, int]]:
        """(folder, first row of the block, first row of the bucket, rows) in each block that was spilled."""
        starts, counts = self._rows_of(bucket)
        blocks = zip(self._sources, self._block_starts.tolist(), starts, counts, strict=True)
        return [
            (source, block_start, start, count)
            for source, block_start, start, count in blocks
            if count and isinstance(source, Path)
        ]

    def _rows_of(self, bucket: int) -> tuple[list[int], list[int]]:
        """In each block: the first row of the bucket, and how many it has."""
        last, before = self._before
        if bucket < last:
            last, before = 0, np.zeros_like(before)
        before = before + self._counts[last:bucket].sum(axis=0, dtype=np.int64)
        self._before = bucket, before
        return (self._block_starts + before).tolist(), self._counts[bucket].tolist()

    def _open(self, path: Path) -> BinaryIO:
        if path not in self._files:
            self._files[path] = path.open("rb", buffering=0)
        return self._files[path]


def _read_exactly(file: BinaryIO, target: NDArray[np.uint8]) -> None:
    view = target.data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise too_short(Path(file.name))
        view = view[count:]
