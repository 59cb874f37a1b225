"""Rows on their way to the shuffle: append-only files, in blocks, each block ordered by bucket.

Rows arrive in token order and are collected into blocks. Inside a block they are ordered by bucket (the top
bits of the shuffle key; held-out rows come last, in arrival order), and the block is appended to one file per
hook with large writes. ``segments`` says how many rows of each bucket a block has, so that one bucket can be
read back.

    token           uint64 [rows]                   sequence * context + position
    hook.<i>        record [rows]                   see ``records.py``
    segments        uint32 [blocks, buckets + 1]    rows per bucket; the last column is held out
    ids, document   int32 [sequences, context]      in reading order

Of several processes that write one cache each has a folder of its own; the token arrays are in the first.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..config import StorageConfig
from ..durable import append_early, fsync_file, fsync_folder, make_folder, write_all
from ..encoding.records import RecordLayout

DEFAULT_BUCKETS = 256
MAX_BUCKETS = 1 << 14
SMALL_BUCKET_BYTES = 8 << 20  # it stays in the processor's cache from sorting to hashing
_WRITE_BYTES = 8 << 20
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class SpillLengths:
    """How far the spill goes; the length of every file follows from it."""

    blocks: int = 0
    rows: int = 0
    sequences: int = 0


class Block:
    """Memory for ``capacity`` rows of every hook, filled from the front."""

    def __init__(self, capacity: int, records: list[RecordLayout]) -> None:
        self.capacity = capacity
        self.used = 0
        self.token = np.empty(capacity, np.uint64)
        self.bucket = np.empty(capacity, np.uint16)  # which is sorted by radix; at most MAX_BUCKETS
        self.records = [np.empty((capacity, record.record_bytes), np.uint8) for record in records]
        self.sequences: list[dict[str, NDArray[np.int32]]] = []

    def clear(self) -> None:
        self.used = 0
        self.sequences = []

    def by_bucket(self) -> NDArray[np.int64]:
        """Its rows in the order of their buckets, and in each in the order in which they arrived."""
        return np.argsort(self.bucket[: self.used], kind="stable")

    def count_buckets(self, num_buckets: int) -> NDArray[np.uint32]:
        """Rows of each bucket, uint32 [num_buckets + 1]."""
        return np.bincount(self.bucket[: self.used], minlength=num_buckets + 1).astype("<u4")


@dataclass
class SpillWriter:
    """Appends blocks in a background thread. Nothing is durable before :meth:`sync`.

    What is never synced need not come to the disk at all, if the system's file cache has room for it until
    the cache is finished and the spill is removed.
    """

    folder: Path
    records: list[RecordLayout]
    num_buckets: int
    sequence_arrays: tuple[str, ...]  # of "ids" and "document", those that exist
    context: int
    early: bool = False  # begin to put rows on the disk when they are appended, because a sync will follow
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "saecache-spill"))
    _flushing: Future[None] | None = None

    def begin(self, lengths: SpillLengths) -> None:
        """Cut every file to ``lengths``: what came after the last durable point is written again."""
        make_folder(self.folder)
        row_bytes = {"token": 8} | {f"hook.{i}": record.record_bytes for i, record in enumerate(self.records)}
        sizes = {name: size * lengths.rows for name, size in row_bytes.items()}
        sizes |= dict.fromkeys(self.sequence_arrays, 4 * self.context * lengths.sequences)
        sizes["segments"] = 4 * (self.num_buckets + 1) * lengths.blocks
        for name, size in sizes.items():
            if (self.folder / name).is_dir():
                raise CorruptCacheError(f"{self.folder / name} is not a file: remove it, to start again")
            with (self.folder / name).open("ab") as file:
                if file.tell() < size:
                    raise _too_short(self.folder / name)
                file.truncate(size)
        fsync_folder(self.folder)

    def submit(self, block: Block) -> None:
        """Append a block; the caller may refill it once :meth:`wait` or the next ``submit`` has returned."""
        self.wait()
        self._flushing = self._thread.submit(self._append_block, block)

    def wait(self) -> None:
        """Wait until the last submitted block is written; raises the error of writing it."""
        if self._flushing is not None:
            flushing, self._flushing = self._flushing, None
            flushing.result()

    def sync(self) -> None:
        """Make everything submitted so far durable."""
        self.early = True
        self.wait()
        for path in sorted(self.folder.iterdir()):
            fsync_file(path)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def append_sequences(self, block: Block) -> None:
        """Append the token arrays of a block, whose rows stay in memory."""
        self.wait()
        self._append_sequences(block)

    def _append_block(self, block: Block) -> None:
        order = block.by_bucket()
        for i, records in enumerate(block.records):
            self._append_in_order(f"hook.{i}", records, order)
        self._append("token", block.token[order])
        self._append("segments", block.count_buckets(self.num_buckets)[None])
        self._append_sequences(block)

    def _append_sequences(self, block: Block) -> None:
        for arrays in block.sequences:
            for name, array in arrays.items():
                self._append(name, array)
        block.sequences = []

    def _append(self, name: str, rows: NDArray[Any]) -> None:
        with (self.folder / name).open("ab", buffering=0) as file:
            write_all(file, np.ascontiguousarray(rows).data)

    def _append_in_order(self, name: str, rows: NDArray[Any], order: NDArray[np.int64]) -> None:
        """Append ``rows[order]`` in large writes, through one buffer that is used again."""
        step = max(1, _WRITE_BYTES // rows[:1].nbytes)
        buffer = np.empty((min(step, len(order)), *rows.shape[1:]), rows.dtype)
        with (self.folder / name).open("ab", buffering=0) as file:
            for start in range(0, len(order), step):
                picks = order[start : start + step]
                rows.take(picks, axis=0, out=buffer[: len(picks)], mode="clip")  # other modes copy once more
                (append_early if self.early else write_all)(file, buffer[: len(picks)].data)


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
        starts, counts, heldout = [], [], []
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
            heldout.append(int(spilled[:, -1].sum(dtype=np.int64)))
        self._sources += [(block, block.by_bucket()) for block in in_memory]
        starts.append(np.zeros(len(in_memory), np.int64))
        counts += [block.count_buckets(num_buckets)[None] for block in in_memory]
        heldout.append(sum(int(block.count_buckets(num_buckets)[-1]) for block in in_memory))
        self.heldout_rows = heldout
        """Held-out rows in each folder, and in memory: each in reading order."""
        self._counts = _merge_buckets(np.vstack(counts).astype(np.int64), most_rows).T.copy()
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


def _merge_buckets(counts: NDArray[np.int64], most_rows: int) -> NDArray[np.int64]:
    """Rows [blocks, buckets + 1] with twice as few buckets, again and again while none has too many rows.

    In every block the rows of neighbouring buckets lie side by side.
    """
    buckets, heldout = counts[:, :-1], counts[:, -1:]
    while buckets.shape[1] > 1:
        merged = buckets.reshape(len(buckets), -1, 2).sum(axis=2)
        if merged.sum(axis=0).max() > most_rows:
            break
        buckets = merged
    return np.hstack([buckets, heldout])


def _read_exactly(file: BinaryIO, target: NDArray[np.uint8]) -> None:
    view = target.data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise _too_short(Path(file.name))
        view = view[count:]


def _too_short(path: Path) -> CorruptCacheError:
    return CorruptCacheError(
        f"{path} is shorter than the journal says: the unfinished cache is damaged; remove it to start again"
    )


def bucket_of(keys: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """The top bits of each key: buckets are ranges of keys. ``num_buckets`` is a power of two."""
    bits = num_buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(keys.shape, dtype=np.int64)
    return (keys >> np.uint64(64 - bits)).astype(np.int64)


def choose_buckets(planned_rows: int | None, record_bytes: int, storage: StorageConfig) -> int:
    """How many buckets, a power of two, so that one of the widest hook fits well in a quarter of the memory.

    A small cache does not take that much: its buckets are small ones, but not so many that what one block
    has of a bucket becomes a small read.
    """
    if planned_rows is None:
        return DEFAULT_BUCKETS
    planned = planned_rows * record_bytes
    bucket_bytes = min(storage.memory_bytes // 5, max(SMALL_BUCKET_BYTES, planned // DEFAULT_BUCKETS))
    wanted = -(-planned // bucket_bytes)
    return int(min(1 << max(0, (wanted - 1).bit_length()), MAX_BUCKETS))
