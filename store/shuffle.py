"""The stored order: ascending shuffle keys, found bucket by bucket from the spill's segments."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .keys import row_keys


def bucket_of(keys: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """The top bits of each key: buckets are ranges of keys. ``num_buckets`` is a power of two."""
    bits = num_buckets.bit_length() - 1
    if bits == 0:
        return np.zeros(keys.shape, dtype=np.int64)
    return (keys >> np.uint64(64 - bits)).astype(np.int64)


class StoredOrder:
    """Where in the spill each stored row is: ``positions("train", 0, 10)`` are the first ten training rows."""

    def __init__(self, spill_folder: Path, seed: int, num_buckets: int) -> None:
        self._token = _map(spill_folder / "token", np.dtype("<u8"), (-1,))
        segments = _map(spill_folder / "segments", np.dtype("<u4"), (-1, num_buckets + 1))
        self._counts = np.asarray(segments, dtype=np.int64)
        block_rows = self._counts.sum(axis=1)
        # first row of segment [block, bucket] in the spill
        self._starts = (
            np.cumsum(self._counts, axis=1) - self._counts + (np.cumsum(block_rows) - block_rows)[:, None]
        )
        self._seed = seed
        self._heldout = num_buckets
        self._ends = np.cumsum(self._counts[:, :num_buckets].sum(axis=0))
        self._cached: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def positions(self, split: str, start: int, stop: int) -> NDArray[np.int64]:
        """Spill positions int64 [stop - start] of the stored rows ``start:stop`` of a split."""
        if split == "heldout":
            return self._bucket(self._heldout)[start:stop]
        parts = []
        bucket = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[bucket - 1]) if bucket else 0
            end = min(stop, int(self._ends[bucket]))
            if end > start:
                parts.append(self._bucket(bucket)[start - first : end - first])
            start = max(start, end)
            bucket += 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def tokens(self, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Token index uint64 of each position."""
        return self._token[positions]

    def _bucket(self, bucket: int) -> NDArray[np.int64]:
        """Spill positions of all rows of a bucket, in stored order."""
        if self._cached[0] != bucket:
            counts, starts = self._counts[:, bucket], self._starts[:, bucket]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            positions = np.repeat(starts, counts) + within
            if bucket != self._heldout:
                positions = positions[np.argsort(row_keys(self._seed, self._token[positions]))]
            self._cached = bucket, positions
        return self._cached[1]


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    if not path.stat().st_size:
        return np.empty(0, dtype=dtype).reshape([0 if n < 0 else n for n in shape])
    return np.memmap(path, dtype=dtype, mode="r").reshape(shape)
