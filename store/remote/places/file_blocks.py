"""Local files as the bytes of objects: read in hashed blocks to be sent, written in large ones."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ....common.errors import CorruptCacheError
from ...durable import write_all
from .object_requests import OnBytes, ignore_bytes

PART_BYTES = 8 << 20
WRITE_BYTES = 4 << 20
_MAX_PARTS = 9000  # S3 takes 10,000
_READ_BYTES = 1 << 20


def part_size(size: int) -> int:
    """Bytes of one part of an upload of ``size`` bytes: whole MiB, and few enough parts."""
    return max(PART_BYTES, -(-size // _MAX_PARTS // _READ_BYTES) * _READ_BYTES)


class HashedParts:
    """Iterates over blocks of a file; ends in an error before the last one if the file is not as expected.

    An upload fed from it is never finished with wrong bytes.

    Raises (while iterating):
        CorruptCacheError: the file cannot be read, or its size or sha256 are not the expected ones.
    """

    def __init__(self, path: Path, size: int, sha256: str, on_bytes: OnBytes = ignore_bytes) -> None:
        self._path, self._size, self._sha256 = path, size, sha256
        self._on_bytes = on_bytes
        self._part = part_size(size)
        self._parts: list[bytes] = []
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        whole = hashlib.sha256()
        part, filled, read = _md5(), 0, 0
        held: bytes | None = None
        for block in self._blocks():
            whole.update(block)
            part.update(block)
            read, filled = read + len(block), filled + len(block)
            if filled == self._part:
                self._parts.append(part.digest())
                part, filled = _md5(), 0
            if held is not None:
                yield self._sending(held)
            held = block
        if filled or not self._parts:
            self._parts.append(part.digest())
        if read != self._size or whole.hexdigest() != self._sha256:
            raise CorruptCacheError(
                f"{self._path} is damaged: its bytes are not those of the manifest, so it was not uploaded; "
                "see 'saecache cache verify'"
            )
        if held is not None:
            yield self._sending(held)

    def etag(self) -> str:
        """The ETag that S3 gives to these bytes (without quotes): md5, or md5 of the parts' md5."""
        if self._size <= self._part:
            return self._parts[0].hex()
        return f"{_md5(b''.join(self._parts)).hexdigest()}-{len(self._parts)}"

    def _sending(self, block: bytes) -> bytes:
        self.sent += len(block)
        self._on_bytes(len(block))
        return block

    def _blocks(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb", buffering=0) as file:
                while block := file.read(_READ_BYTES):
                    while len(block) < _READ_BYTES and (more := file.read(_READ_BYTES - len(block))):
                        block += more
                    yield block
        except OSError as error:
            raise CorruptCacheError(f"{self._path} cannot be read: {error.strerror}") from None


def _md5(content: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(content, usedforsecurity=False)  # what S3 uses for ETags


class BlockWriter:
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
            count = min(len(rest), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == len(self._block):
                self.flush()

    def flush(self) -> None:
        write_all(self._file, self._block[: self._filled])
        self._filled = 0
