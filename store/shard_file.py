"""One shard file: inner chunks, each followed by its crc32c, then an index of them, followed by its own.

This is Zarr v3 ``sharding_indexed`` with codecs ``bytes`` + ``crc32c`` and the index at the end. A file may
come from anybody: its index is checked before it is used.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import crc32c as crc32c_library
import numpy as np
from numpy.typing import NDArray

from ..common.errors import CorruptCacheError
from .durable import append_early, replacing
from .layout import ArraySpec, index_size

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)  # both numbers of an index entry whose chunk is not stored: all fill value
CHUNKS_IN_FLIGHT = 4


def crc32c(payload: bytes | NDArray[Any]) -> bytes:
    """The four bytes that follow ``payload`` (C-contiguous): its crc32c, little-endian."""
    if not isinstance(payload, bytes):
        payload = payload.reshape(-1).view(np.uint8)
    value: int = crc32c_library.crc32c(payload, gil_release_mode=1)
    return value.to_bytes(CRC_BYTES, "little")


class ShardWriter:
    """Writes shard files: hashed, written and synced by threads while the next chunk is made."""

    def __init__(self) -> None:
        from .encoding.checksum import crc32c  # which needs the compiler; reading metadata does not

        self._crc32c = crc32c
        self._writing = futures.ThreadPoolExecutor(1, "saecache-write")
        self._hashing = futures.ThreadPoolExecutor(1, "saecache-sha256")
        self._finishing = futures.ThreadPoolExecutor(2, "saecache-sync")
        self._under_way: deque[futures.Future[None]] = deque()  # the write and the hash of each chunk

    def write(
        self, path: Path, chunks: Iterable[NDArray[Any]], chunks_per_shard: int
    ) -> futures.Future[tuple[int, str]]:
        """Write one shard file durably from its inner chunks, in order; chunks that are not given are absent.

        Returns when all chunks were consumed; then the next file may be started.

        Args:
            path: where the shard goes; it appears there whole or not at all.
            chunks: C-contiguous arrays, one inner chunk each, padded to full size. A chunk may be overwritten
                once ``CHUNKS_IN_FLIGHT`` more were consumed, of this file or the next.
            chunks_per_shard: slots of the index.

        Returns:
            The file's size in bytes and its sha256 in hex, once it is durable.
        """
        digest = hashlib.sha256()
        index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
        size = 0
        submitted: list[futures.Future[None]] = []

        def put(*parts: bytes | memoryview) -> None:
            nonlocal size
            size += sum(len(part) for part in parts)
            submitted.append(self._writing.submit(_write_parts, file, parts))
            submitted.append(self._hashing.submit(_hash_parts, digest, parts))
            self._under_way.extend(submitted[-2:])

        with ExitStack() as stack:
            file = stack.enter_context(replacing(path))
            stack.callback(futures.wait, submitted)  # nothing may write on when the file is closed
            for slot, chunk in enumerate(chunks):
                while len(self._under_way) > 2 * (CHUNKS_IN_FLIGHT - 1):
                    self._under_way.popleft().result()
                index[slot] = size, chunk.nbytes + CRC_BYTES
                payload = chunk.reshape(-1).view(np.uint8)
                put(payload.data, self._crc32c(payload).to_bytes(CRC_BYTES, "little"))
            table = index.tobytes()
            put(table, crc32c(table))
            open_file = stack.pop_all()

        def finish() -> tuple[int, str]:
            with open_file:
                for future in submitted:
                    future.result()
            return size, digest.hexdigest()

        return self._finishing.submit(finish)

    def under_way(self) -> list[futures.Future[None]]:
        """The work that is still under way on chunks that were consumed."""
        return list(self._under_way)

    def close(self) -> None:
        """Wait until all work is finished or has failed."""
        for threads in (self._writing, self._hashing, self._finishing):
            threads.shutdown()


def _write_parts(file: BinaryIO, parts: tuple[bytes | memoryview, ...]) -> None:
    for part in parts:
        append_early(file, part)


def _hash_parts(digest: Any, parts: tuple[bytes | memoryview, ...]) -> None:
    for part in parts:
        digest.update(part)


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


def check_all_stored(offsets: NDArray[np.int64], where: str) -> None:
    """
    Raises:
        CorruptCacheError: a chunk is absent, which none of a cache may be.
    """
    if (offsets < 0).any():
        raise CorruptCacheError(f"{where}: chunk {int(np.flatnonzero(offsets < 0)[0])} is not stored")


def check_crc(stored: NDArray[np.uint8], slot: int, where: str, value: int | None = None) -> None:
    """Compare chunk ``slot``, as it is stored, with its crc32c.

    Args:
        value: the crc32c of the chunk, if it was computed already.

    Raises:
        CorruptCacheError: they differ.
    """
    payload, expected = stored[:-CRC_BYTES], stored[-CRC_BYTES:].tobytes()
    if (crc32c(payload) if value is None else value.to_bytes(CRC_BYTES, "little")) != expected:
        raise CorruptCacheError(f"{where}: chunk {slot} does not match its crc32c")


def decode_chunk(stored: NDArray[np.uint8], spec: ArraySpec, slot: int, where: str) -> NDArray[np.uint8]:
    """The bytes of chunk ``slot``, uint8 [chunk_bytes]; a view of ``stored`` where it is not compressed.

    Raises:
        CorruptCacheError: they cannot be decoded.
    """
    payload = stored[:-CRC_BYTES]
    if spec.codec is None:
        return payload
    decoded = np.empty(spec.chunk_bytes, np.uint8)
    try:
        spec.codec.decode(payload, decoded)
    except ValueError as error:
        raise CorruptCacheError(f"{where}: chunk {slot} cannot be decoded: {error}") from None
    return decoded


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
