"""Whole objects to and from files, every byte compared with its sha256."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ..durable import write_all
from .access import Access, ObjectInfo
from .failures import RemoteError, WrongBytesError
from .upload import HashedParts, OnBytes, part_size

_WRITE_BYTES = 4 << 20


def fetch(access: Access, key: str, file: BinaryIO, size: int, sha256: str, on_bytes: OnBytes | None) -> None:
    """Read an object into ``file``, from the start, until its bytes are right.

    Raises:
        CorruptCacheError: they never are.
    """

    def once() -> None:
        got = stream(access, key, file, size, on_bytes)
        if got != sha256:
            _moved(on_bytes, -size)
            raise WrongBytesError(f"{access.url}/{key} is damaged: sha256 is {got}, expected {sha256}")

    access.attempts(once)


def checksum(access: Access, key: str, size: int, on_bytes: OnBytes | None) -> str:
    """sha256 of an object of ``size`` bytes; errors as :func:`fetch`."""
    return access.attempts(lambda: stream(access, key, None, size, on_bytes))


def send(
    access: Access, path: Path, key: str, size: int, sha256: str, on_bytes: OnBytes | None
) -> ObjectInfo:
    """Write a file to an object, whole or not at all, until the right bytes have arrived.

    Raises:
        CorruptCacheError: the file is not as expected (then nothing was written), or they never arrive.
    """

    def once() -> ObjectInfo:
        parts = HashedParts(path, size, sha256, on_bytes)
        try:
            etag = _put(access, key, parts, size, sha256)
            if etag != parts.etag() and (got := stream(access, key, None, size, None)) != sha256:
                raise WrongBytesError(
                    f"{access.url}/{key}: other bytes arrived than were sent (sha256 {got}, not {sha256})"
                )
        except WrongBytesError:
            access.remove([key])  # its recorded sha256 is that of the right bytes
            _moved(on_bytes, -parts.sent)
            raise
        except BaseException:
            _moved(on_bytes, -parts.sent)
            raise
        info = access.head(key)
        if info is None or info.size != size:
            raise RemoteError(f"writing {key} at {access.url}: it is not there after it was written")
        return info

    return access.attempts(once)


def stream(access: Access, key: str, file: BinaryIO | None, size: int, on_bytes: OnBytes | None) -> str:
    """Read an object once, into ``file`` if there is one; returns its sha256.

    Raises:
        WrongBytesError: it has another size.
    """
    digest, done = hashlib.sha256(), 0
    if file is not None:
        file.seek(0)
        if os.fstat(file.fileno()).st_size:  # ext4 writes all of a file on close that was ever truncated
            file.truncate()
    try:
        result = access.open(key)
        if result.meta["size"] != size:
            raise WrongBytesError(f"{access.url}/{key}: {result.meta['size']} bytes, expected {size}")
        writer = None if file is None else _BlockWriter(file, min(size, _WRITE_BYTES))
        for chunk in access.chunks(key, result):
            if done + len(chunk) > size:
                raise WrongBytesError(f"{access.url}/{key}: more than the expected {size} bytes")
            digest.update(chunk)
            if writer is not None:
                writer.write(chunk)
            done += len(chunk)
            _moved(on_bytes, len(chunk))
        if writer is not None:
            writer.flush()
        if done != size:
            raise RemoteError(f"reading {key} at {access.url}: got {done} of its {size} bytes")
    except BaseException:
        _moved(on_bytes, -done)
        raise
    return digest.hexdigest()


class _BlockWriter:
    """Writes in large blocks: the system then keeps the file in large pages, and maps it with fewer faults.

    Measured with files that stay in memory: an epoch was slower by a sixth after writes of 1 MiB or less.
    """

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        self._file = file
        self._block = memoryview(bytearray(block_bytes))
        self._filled = 0

    def write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while len(rest):
            taken = min(len(rest), len(self._block) - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == len(self._block):
                self.flush()

    def flush(self) -> None:
        write_all(self._file, self._block[: self._filled])
        self._filled = 0


def _put(access: Access, key: str, parts: HashedParts, size: int, sha256: str) -> str:
    """Returns the ETag."""
    import obstore

    store, attributes = access.backend.store(writing=True), access.attributes(sha256)
    with access.asking(f"writing {key}"):
        if size <= part_size(size):
            content = b"".join(parts)
            done = obstore.put(store, access.key(key), content, attributes=attributes, use_multipart=False)
        else:
            done = obstore.put(
                store,
                access.key(key),
                iter(parts),
                attributes=attributes,
                use_multipart=True,
                chunk_size=part_size(size),
                max_concurrency=2,
            )
    return (done["e_tag"] or "").strip('"')


def _moved(on_bytes: OnBytes | None, count: int) -> None:
    if on_bytes and count:
        on_bytes(count)
