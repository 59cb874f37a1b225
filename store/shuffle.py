"""The stored order: ascending shuffle keys, found bucket by bucket from the spill's segments."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import StorageConfig
from .keys import row_keys

DEFAULT_BUCKETS = 256
MAX_BUCKETS = 1 << 14


def bucket_of(keys: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """The top bits of each key: buckets are ranges of keys. ``num_buckets`` is a power of two."""
    bits = num_buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(keys.shape, dtype=np.int64)
    return (keys >> np.uint64(64 - bits)).astype(np.int64)


def choose_buckets(planned_rows: int | None, record_bytes: int, storage: StorageConfig) -> int:
    """How many buckets, a power of two, so that one of the widest hook fits in a quarter of the memory."""
    if planned_rows is None:
        return DEFAULT_BUCKETS
    wanted = -(-planned_rows * record_bytes // (storage.memory_bytes // 4))
    return int(min(1 << max(0, (wanted - 1).bit_length()), MAX_BUCKETS))


class StoredOrder:
    """Where in the spill each stored row is: ``positions("train", 0, 10)`` are the first ten rows."""

    def __init__(self, spill_folder: Path, seed: int, num_buckets: int) -> None:
        self._seed = seed
        self._heldout = num_buckets
        self._token_file = spill_folder / "token"
        segments = map_file(spill_folder / "segments", "<u4", (num_buckets + 1,))
        self._counts = np.ascontiguousarray(segments.T)  # [buckets + 1, blocks]
        block_rows = self._counts.sum(axis=0, dtype=np.int64)
        self._block_starts = np.cumsum(block_rows) - block_rows
        self._bucket_ends = np.cumsum(self._counts[:num_buckets].sum(axis=1, dtype=np.int64))
        self._cached: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def positions(self, split: str, start: int, stop: int) -> NDArray[np.int64]:
        """Spill positions int64 [stop - start] of the stored rows ``start:stop`` of a split."""
        if split == "heldout":
            return self._in_arrival_order(self._heldout, start, stop)
        parts = [np.empty(0, dtype=np.int64)]
        bucket = int(np.searchsorted(self._bucket_ends, start, side="right"))
        while start < stop:
            first = int(self._bucket_ends[bucket - 1]) if bucket else 0
            end = min(stop, int(self._bucket_ends[bucket]))
            parts.append(self._sorted_bucket(bucket)[start - first : end - first])
            start = max(start, end)
            bucket += 1
        return np.concatenate(parts)

    def tokens(self, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Token index uint64 of each position."""
        # Mapped anew each time, so that the pages touched so far do not pile up in this process.
        return np.asarray(map_file(self._token_file, "<u8", ())[positions])

    def will_need(self, descriptor: int, record_bytes: int, split: str, row: int) -> None:
        """Ask the system to read the segments of the bucket of stored row ``row`` ahead, where it can be
        asked.
        """
        if split == "heldout" or not hasattr(os, "posix_fadvise"):
            return  # held-out rows are read in file order, which the system sees by itself
        bucket = int(np.searchsorted(self._bucket_ends, row, side="right"))
        if bucket < len(self._bucket_ends):
            starts, counts = self._segments(bucket)
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                if count:
                    os.posix_fadvise(
                        descriptor, start * record_bytes, count * record_bytes, os.POSIX_FADV_WILLNEED
                    )

    def _sorted_bucket(self, bucket: int) -> NDArray[np.int64]:
        """Spill positions of all rows of a bucket, in stored order: keys are distinct, there are no ties."""
        if self._cached[0] != bucket:
            positions = self._in_arrival_order(bucket)
            keys = row_keys(self._seed, self.tokens(positions))
            self._cached = bucket, positions[np.argsort(keys)]
        return self._cached[1]

    def _in_arrival_order(self, bucket: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Spill positions of the rows ``start:stop`` of a bucket, in the order in which they were written."""
        starts, counts = self._segments(bucket)
        ends = np.cumsum(counts)
        stop = int(ends[-1]) if stop is None and len(ends) else (stop or 0)
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
        starts, counts, ends = starts[first:last], counts[first:last], ends[first:last]
        if not len(ends):
            return np.empty(0, dtype=np.int64)
        offset = int(ends[0] - counts[0])
        positions: NDArray[np.int64] = np.arange(offset, int(ends[-1])) + np.repeat(
            starts - (ends - counts), counts
        )
        return positions[start - offset : stop - offset]

    def _segments(self, bucket: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First spill position and length of the bucket's segment in each block."""
        before = self._counts[:bucket].sum(axis=0, dtype=np.int64)
        return self._block_starts + before, self._counts[bucket].astype(np.int64)


def map_file(path: Path, dtype: str, row_shape: tuple[int, ...]) -> NDArray[Any]:
    """A spill file as a read-only memory map [n, *row_shape]; an empty file cannot be mapped."""
    if not path.stat().st_size:
        return np.zeros((0, *row_shape), dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")).reshape(-1, *row_shape)
