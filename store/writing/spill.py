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

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..durable import append_early, fsync_file, fsync_folder, make_folder, write_all
from ..encoding.records import RecordLayout
from .blocks import Block

_WRITE_BYTES = 8 << 20


@dataclass(frozen=True)
class SpillLengths:
    """How far the spill goes; the length of every file follows from it."""

    blocks: int = 0
    rows: int = 0
    sequences: int = 0


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
                    raise too_short(self.folder / name)
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


def too_short(path: Path) -> CorruptCacheError:
    """The error for a file of the spill that has fewer bytes than the journal says."""
    return CorruptCacheError(
        f"{path} is shorter than the journal says: the unfinished cache is damaged; remove it to start again"
    )
