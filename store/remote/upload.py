"""Files to whole objects: each is read once, and checked and hashed in the order in which it is sent."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ...common.errors import CorruptCacheError
from .download import checksum
from .failures import RemoteError, WrongBytesError
from .object_requests import ObjectInfo, ObjectRequests, OnBytes, count_bytes

PART_BYTES = 8 << 20
_MAX_PARTS = 9000  # S3 takes 10,000
_READ_BYTES = 1 << 20


def send(
    folder: ObjectRequests, path: Path, key: str, size: int, sha256: str, on_bytes: OnBytes | None
) -> ObjectInfo:
    """Write a file to an object once, whole or not at all, and look whether its bytes arrived.

    Raises:
        CorruptCacheError: the file is not as expected; then nothing was written.
        WrongBytesError: other bytes arrived; the object is gone again.
    """
    parts = HashedParts(path, size, sha256, on_bytes)
    try:
        etag = _put(folder, key, parts, size, sha256)
        if etag != parts.etag() and (got := checksum(folder, key, size)) != sha256:
            raise WrongBytesError(
                f"{folder.url}/{key}: other bytes arrived than were sent (sha256 {got}, not {sha256})"
            )
        info = folder.head(key)
        if info is None or info.size != size:
            raise RemoteError(f"writing {key} at {folder.url}: it is not there after it was written")
    except BaseException as error:
        if isinstance(error, WrongBytesError):
            folder.delete([key])  # its recorded sha256 is that of the right bytes
        count_bytes(on_bytes, -parts.sent)
        raise
    return info


def _put(folder: ObjectRequests, key: str, parts: "HashedParts", size: int, sha256: str) -> str:
    """Returns the ETag."""
    import obstore

    if size <= part_size(size):
        done = folder.put_once(key, b"".join(parts), sha256)
    else:
        with folder.translated(f"writing {key}"):
            done = obstore.put(
                folder.bucket.store("parts"),
                folder.name_of(key),
                iter(parts),
                attributes=folder.attributes(sha256),
                use_multipart=True,
                chunk_size=part_size(size),
                max_concurrency=2,
            )
    return (done["e_tag"] or "").strip('"')


def part_size(size: int) -> int:
    """Bytes of one part of an upload of ``size`` bytes: whole MiB, and few enough parts."""
    return max(PART_BYTES, -(-size // _MAX_PARTS // _READ_BYTES) * _READ_BYTES)


class HashedParts:
    """Iterates over blocks of a file; ends in an error before the last one if the file is not as expected.

    An upload fed from it is never finished with wrong bytes.

    Raises (while iterating):
        CorruptCacheError: the file cannot be read, or its size or sha256 are not the expected ones.
    """

    def __init__(self, path: Path, size: int, sha256: str, on_bytes: OnBytes | None) -> None:
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
        count_bytes(self._on_bytes, len(block))
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
