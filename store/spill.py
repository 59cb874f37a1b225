"""Rows on their way to the shuffle: append-only files, cut into blocks, each block sorted by bucket.

While writing, rows arrive in token order. They are gathered into blocks; inside a block, rows are ordered by bucket
(the top bits of their shuffle key; held-out rows come last, in arrival order), and the block is appended as one large
write to one file per hook. ``segments`` says how many rows of each bucket a block has, so that one bucket can later be
read from its segments.

    token       uint64 [rows]                    sequence * context + position
    hook.<i>    record [rows]                    see ``RecordLayout``
    segments    uint32 [blocks, buckets + 1]     rows per bucket, the last column is held out
    ids, document   int32 [sequences, context]   in reading order
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RecordLayout:
    """Bytes of one spilled row of one hook: the stored row, padding to 8, norm float32, mean float32."""

    d_model: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.d_model * np.dtype(self.dtype).itemsize

    @property
    def record_bytes(self) -> int:
        return -(-self.row_bytes // 8) * 8 + 8

    def rows(self, records: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The stored rows [n, D] inside records uint8 [n, record_bytes]; a view."""
        return records[:, : self.row_bytes].view(self.dtype)

    def norm(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -8:-4].view(np.float32)[:, 0]

    def mean(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [n]; a view."""
        return records[:, -4:].view(np.float32)[:, 0]


@dataclass(frozen=True)
class SpillLengths:
    """How far the spill goes; the length of every file follows from it."""

    blocks: int = 0
    rows: int = 0
    sequences: int = 0


class Spill:
    """The spill files of one cache being written. Appending is not durable before :meth:`sync`."""

    def __init__(
        self, folder: Path, records: list[RecordLayout], num_buckets: int, token_arrays: dict[str, int]
    ) -> None:
        """``token_arrays``: name -> bytes of one sequence, of ``ids`` and ``document`` as far as they exist."""
        self.folder = folder
        self.records = records
        self.num_buckets = num_buckets
        self._row_bytes = {"token": 8} | {
            f"hook.{i}": record.record_bytes for i, record in enumerate(records)
        }
        self._sequence_bytes = token_arrays
        folder.mkdir(parents=True, exist_ok=True)

    def truncate(self, lengths: SpillLengths) -> None:
        """Cut every file to ``lengths``: what came after the last durable point is written again."""
        for name, size in self._sizes(lengths).items():
            with (self.folder / name).open("ab") as file:
                file.truncate(size)

    def append_block(
        self, token: NDArray[np.uint64], records: list[NDArray[np.uint8]], bucket: NDArray[np.integer]
    ) -> None:
        """Append rows: token [n], one uint8 [n, record_bytes] per hook, bucket [n] (``num_buckets`` = held out)."""
        order = np.argsort(bucket, kind="stable")
        counts = np.bincount(bucket, minlength=self.num_buckets + 1).astype(np.uint32)
        self._append("token", token[order])
        for i, record in enumerate(records):
            self._append(f"hook.{i}", record[order])
        self._append("segments", counts)

    def append_sequences(self, arrays: dict[str, NDArray[np.int32]]) -> None:
        """Append token arrays int32 [n, context], by name."""
        for name, array in arrays.items():
            self._append(name, np.ascontiguousarray(array))

    def sync(self) -> None:
        """Make everything appended so far durable."""
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _sizes(self, lengths: SpillLengths) -> dict[str, int]:
        return (
            {name: size * lengths.rows for name, size in self._row_bytes.items()}
            | {name: size * lengths.sequences for name, size in self._sequence_bytes.items()}
            | {"segments": lengths.blocks * (self.num_buckets + 1) * 4}
        )

    def _append(self, name: str, block: NDArray[np.generic]) -> None:
        with (self.folder / name).open("ab", buffering=0) as file:
            view = memoryview(block).cast("B")
            written = 0
            while written < len(view):
                written += file.write(view[written:])
