"""Buckets of the shuffle: ranges of keys, each small enough to be sorted in memory."""

import numpy as np
from numpy.typing import NDArray

from ..config import StorageConfig

DEFAULT_BUCKETS = 256
MAX_BUCKETS = 1 << 14
SMALL_BUCKET_BYTES = 8 << 20  # it stays in the processor's cache from sorting to hashing


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
