"""The index of a shard file: where each inner chunk lies. It may come from anybody, like the file itself."""

import numpy as np
from numpy.typing import NDArray

from ..common.errors import CorruptCacheError
from .layout import ArraySpec, index_size
from .shard_file import ABSENT, CRC_BYTES, crc32c


def parse_index(tail: bytes, spec: ArraySpec, where: str, file_size: int) -> NDArray[np.int64]:
    """Place and size of each inner chunk of a shard.

    Args:
        tail: the last bytes of the file, as many as ``index_size`` says.
        spec: the array the shard belongs to.
        where: the file, for errors.
        file_size: its bytes.

    Returns:
        int64 [chunks_per_shard, 2], (offset, bytes with the crc32c); (-1, -1) where the chunk is absent.
        With compression the bytes differ from chunk to chunk.

    Raises:
        CorruptCacheError: a wrong checksum, an entry that is not one whole chunk inside the file, or two
            that overlap.
    """
    length = index_size(spec.chunks_per_shard)
    if len(tail) != length:
        raise CorruptCacheError(f"{where}: {file_size} bytes is too short for its index of {length} bytes")
    table, checksum = tail[:-CRC_BYTES], tail[-CRC_BYTES:]
    if crc32c(table) != checksum:
        raise CorruptCacheError(f"{where}: the shard index does not match its crc32c")
    entries = np.frombuffer(table, dtype="<u8").reshape(-1, 2)
    absent = (entries == ABSENT).all(axis=1)
    offsets, sizes = entries[:, 0], entries[:, 1]
    most = np.uint64(spec.max_stored_bytes)
    least = most if spec.codec is None else np.uint64(CRC_BYTES + 1)
    end = np.uint64(max(0, file_size - length))  # numbers are unsigned: what is compared must not wrap around
    wrong = ~absent & (
        (sizes < least) | (sizes > most) | (offsets > end) | (sizes > end - np.minimum(offsets, end))
    )
    if wrong.any():
        slot = int(np.flatnonzero(wrong)[0])
        offset, size = entries[slot].tolist()
        expected = f"{most}" if least == most else f"{least} to {most}"
        raise CorruptCacheError(
            f"{where}: index entry {slot} says {size} bytes from {offset}; "
            f"expected {expected} bytes inside the {file_size} bytes of the file"
        )
    _check_apart(offsets, sizes, np.flatnonzero(~absent), where)
    found: NDArray[np.int64] = entries.view(np.int64).copy()  # ABSENT becomes -1
    return found


def _check_apart(
    offsets: NDArray[np.uint64], sizes: NDArray[np.uint64], present: NDArray[np.int64], where: str
) -> None:
    """No two of the entries ``present`` share a byte."""
    order = present[np.argsort(offsets[present], kind="stable")]
    early = offsets[order[1:]] < offsets[order[:-1]] + sizes[order[:-1]]
    if early.any():
        first = int(np.flatnonzero(early)[0])
        raise CorruptCacheError(
            f"{where}: index entries {order[first]} and {order[first + 1]} overlap; expected chunks that lie "
            "apart"
        )
