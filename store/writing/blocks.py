"""Blocks of rows in memory, and the buckets of the shuffle key by which the rows of a block are ordered."""

import numpy as np
from numpy.typing import NDArray

from ..config import StorageConfig
from ..encoding.records import RecordLayout

DEFAULT_BUCKETS = 256
MAX_BUCKETS = 1 << 14
SMALL_BUCKET_BYTES = 8 << 20  # it stays in the processor's cache from sorting to hashing


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


def merge_buckets(counts: NDArray[np.int64], most_rows: int) -> NDArray[np.int64]:
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
