"""One shard file: inner chunks, each followed by its crc32c, then an index of them, followed by its own.

This is Zarr v3 ``sharding_indexed`` with codecs ``bytes`` + ``crc32c`` and the index at the end.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent import futures
from pathlib import Path
from typing import Any, BinaryIO

import crc32c as crc32c_library
import numpy as np
from numpy.typing import NDArray

from .durable import append_early, write_file

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)  # both numbers of an index entry whose chunk is not stored: all fill value
CHUNKS_IN_FLIGHT = 2


def crc32c(payload: bytes | NDArray[Any]) -> bytes:
    """The four bytes that follow ``payload`` (C-contiguous): its crc32c, little-endian."""
    if not isinstance(payload, bytes):
        payload = payload.reshape(-1).view(np.uint8)
    value: int = crc32c_library.crc32c(payload, gil_release_mode=1)
    return value.to_bytes(CRC_BYTES, "little")


class ShardWriter:
    """Writes shard files: hashing and writing have threads of their own while the next chunk is made."""

    def __init__(self) -> None:
        self._writing = futures.ThreadPoolExecutor(1, "saecache-write")
        self._hashing = futures.ThreadPoolExecutor(1, "saecache-sha256")

    def write(self, path: Path, chunks: Iterable[NDArray[Any]], chunks_per_shard: int) -> tuple[int, str]:
        """Write one shard file durably from its inner chunks, in order; chunks that are not given are absent.

        Args:
            path: where the shard goes; it appears there whole or not at all.
            chunks: C-contiguous arrays, one inner chunk each, padded to full size. A chunk may be overwritten
                once ``CHUNKS_IN_FLIGHT`` more were taken.
            chunks_per_shard: slots of the index.

        Returns:
            The file's size in bytes and its sha256 in hex.
        """
        digest = hashlib.sha256()
        index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
        size = 0

        def write(file: BinaryIO) -> None:
            nonlocal size
            under_way: deque[futures.Future[None]] = deque()

            def put(*parts: bytes | memoryview) -> None:
                nonlocal size
                size += sum(len(part) for part in parts)
                under_way.append(self._writing.submit(_write_parts, file, parts))
                under_way.append(self._hashing.submit(_hash_parts, digest, parts))

            try:
                for slot, chunk in enumerate(chunks):
                    while len(under_way) > 2 * (CHUNKS_IN_FLIGHT - 1):  # the write and the hash of a chunk
                        under_way.popleft().result()
                    index[slot] = size, chunk.nbytes + CRC_BYTES
                    put(chunk.reshape(-1).view(np.uint8).data, crc32c(chunk))
                table = index.tobytes()
                put(table, crc32c(table))
            finally:
                futures.wait(under_way)  # nothing may write on when the file is closed
            for future in under_way:
                future.result()

        write_file(path, write)
        return size, digest.hexdigest()

    def close(self) -> None:
        self._writing.shutdown()
        self._hashing.shutdown()


def _write_parts(file: BinaryIO, parts: tuple[bytes | memoryview, ...]) -> None:
    for part in parts:
        append_early(file, part)


def _hash_parts(digest: Any, parts: tuple[bytes | memoryview, ...]) -> None:
    for part in parts:
        digest.update(part)
