"""One shard file: inner chunks, each followed by its crc32c, then the index (offset, size of each) with its crc32c.

This is Zarr v3 ``sharding_indexed`` with codecs ``bytes`` + ``crc32c`` and the index at the end.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .durable import write_file
from .errors import CorruptCacheError
from .layout import ArraySpec, index_size

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)  # both numbers of an index entry whose chunk is not stored: all fill value


def crc32c(payload: bytes | NDArray[np.generic]) -> bytes:
    """The four bytes that follow ``payload`` (C-contiguous): its crc32c, little-endian."""
    return int(google_crc32c.value(payload)).to_bytes(CRC_BYTES, "little")


def write_shard(path: Path, chunks: Iterable[NDArray[np.generic]], chunks_per_shard: int) -> tuple[int, str]:
    """Write one shard file durably from its inner chunks, in order; chunks that are not given are absent.

    Args:
        path: where the shard goes; it appears there whole or not at all.
        chunks: C-contiguous arrays, one inner chunk each, padded to full size.
        chunks_per_shard: slots of the index.

    Returns:
        The file's size in bytes and its sha256 in hex.
    """
    digest = hashlib.sha256()
    index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
    size = 0

    def write(file: BinaryIO) -> None:
        nonlocal size

        def put(block: bytes | NDArray[np.generic]) -> None:
            nonlocal size
            view = memoryview(block).cast("B")
            file.write(view)
            digest.update(view)
            size += len(view)

        for slot, chunk in enumerate(chunks):
            index[slot] = size, chunk.nbytes + CRC_BYTES
            put(chunk)
            put(crc32c(chunk))
        table = index.tobytes()
        put(table)
        put(crc32c(table))

    write_file(path, write)
    return size, digest.hexdigest()


def parse_index(tail: bytes | memoryview, spec: ArraySpec, shard: int, file_size: int) -> NDArray[np.int64]:
    """The offset of each inner chunk of a shard, -1 where it is absent.

    Args:
        tail: the last bytes of the file, as many as ``index_size`` says.
        spec: the array the shard belongs to.
        shard: number of the shard.
        file_size: bytes of the whole file.

    Returns:
        int64 [chunks_per_shard].

    Raises:
        CorruptCacheError: the index has a wrong checksum, or an entry that is not one whole chunk inside the file.
    """
    where = spec.shard_path(shard)
    length = index_size(spec.chunks_per_shard)
    if len(tail) != length:
        raise CorruptCacheError(f"{where}: {file_size} bytes is too short for its index of {length} bytes")
    table, checksum = bytes(tail[:-CRC_BYTES]), bytes(tail[-CRC_BYTES:])
    if crc32c(table) != checksum:
        raise CorruptCacheError(f"{where}: the shard index does not match its crc32c")
    entries = np.frombuffer(table, dtype="<u8").reshape(-1, 2)
    absent = (entries == ABSENT).all(axis=1)
    stored = spec.chunk_bytes + CRC_BYTES
    limit = file_size - length - stored
    wrong = ~absent & ((entries[:, 1] != stored) | (entries[:, 0] > max(limit, 0)) | (limit < 0))
    if wrong.any():
        slot = int(np.flatnonzero(wrong)[0])
        raise CorruptCacheError(
            f"{where}: index entry {slot} is (offset {entries[slot, 0]}, size {entries[slot, 1]}), expected {stored} "
            f"bytes inside the {file_size} bytes of the file"
        )
    return np.where(absent, np.uint64(0), entries[:, 0]).astype(np.int64) - absent
