"""A place in object storage: small objects, whole files, listings; retried, checked, errors translated."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from ..durable import write_all, write_file
from ..errors import CorruptCacheError, SaecacheError, UsageError
from .backend import Backend
from .failures import AccessError, MissingObjectError, RemoteError, WrongBytesError, take_apart, translate
from .parts import HashedParts, OnBytes, part_size
from .settings import Patience
from .urls import parse_url

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta

T = TypeVar("T")
SHA256_ATTRIBUTE = "sha256"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object. ``sha256`` is what its writer recorded beside it, if anything."""

    key: str
    size: int
    modified: datetime
    etag: str | None
    sha256: str | None = None


def open_location(url: str, patience: Patience | None = None) -> "Location":
    """The place a URL names: s3://, gs://, az://, file:// or memory:// (for this process only).

    Nothing is asked of the server yet. Credentials, region and endpoint come from the standard environment
    variables and, for s3://, from the AWS profile files.

    Raises:
        UsageError: not such a URL, or the environment's settings contradict each other.
    """
    parsed = parse_url(url)
    return Location(Backend(parsed, patience or Patience()), str(parsed), parsed.prefix)


class Location:
    """See :func:`open_location`. Keys are relative to it. Safe to use from several threads.

    Every method raises:
        AccessError: credentials, rights or the bucket are wrong; at once, without retries.
        MissingObjectError: no such object.
        RemoteError: the store kept failing although the request was repeated.
    """

    def __init__(self, backend: Backend, url: str, prefix: str) -> None:
        self.url = url
        self._backend = backend
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"Location({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself, with its own credentials."""
        return open_location, (self.url, self._backend.patience)

    def child(self, name: str) -> "Location":
        """The location ``name`` below this one."""
        return Location(self._backend, f"{self.url}/{name}", f"{self._prefix}/{name}".lstrip("/"))

    def get(self, key: str, max_bytes: int) -> bytes:
        """The whole of a small object.

        Raises:
            CorruptCacheError: it is larger than ``max_bytes``; then it is not read.
        """
        return self.read(key, max_bytes, lambda content: content)

    def read(self, key: str, max_bytes: int, parse: Callable[[bytes], T]) -> T:
        """What ``parse`` makes of a small object; when it fails, other bytes may come next time.

        Raises:
            CorruptCacheError: the object is larger than ``max_bytes``.
            UsageError, CorruptCacheError: of ``parse``, each time.
        """

        def read() -> T:
            result = self._open(key)
            if (size := result.meta["size"]) > max_bytes:
                raise CorruptCacheError(f"{self.url}/{key}: {size} bytes, expected at most {max_bytes}")
            content = bytearray()
            for chunk in self._chunks(key, result):
                content += chunk
                if len(content) > max_bytes:
                    raise CorruptCacheError(f"{self.url}/{key}: more than the {max_bytes} bytes it may have")
            if len(content) != size:
                raise RemoteError(f"reading {key} at {self.url}: got {len(content)} of its {size} bytes")
            try:
                return parse(bytes(content))
            except (CorruptCacheError, UsageError) as error:
                refusals.append(error)
                raise WrongBytesError(str(error)) from None

        refusals: list[SaecacheError] = []
        try:
            return self._attempts(read)
        except WrongBytesError:
            raise refusals[-1] from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of an object; unlike :meth:`download` compared with nothing."""
        import obstore

        def read() -> bytes:
            with self._asking(f"reading {key}"):
                store = self._backend.store(writing=False)
                content = bytes(obstore.get_range(store, self._key(key), start=start, length=length))
            if len(content) != length:
                raise RemoteError(f"reading {key} at {self.url}: got {len(content)} of {length} bytes")
            return content

        return self._attempts(read)

    def download(
        self, key: str, path: Path, *, size: int, sha256: str, on_bytes: OnBytes | None = None
    ) -> None:
        """Write an object to ``path``: under a temporary name, checked, synced, then renamed.

        Raises:
            CorruptCacheError: its size or sha256 differ from the expected ones each time it is read.
            OSError: of the local disk.
        """
        write_file(path, lambda file: self._fetch(key, file, size, sha256, on_bytes))

    def checksum(self, key: str, *, size: int, on_bytes: OnBytes | None = None) -> str:
        """Read an object of ``size`` bytes and return its sha256, keeping nothing.

        Raises:
            CorruptCacheError: it has another size.
        """
        return self._attempts(lambda: self._stream(key, None, size, on_bytes))

    def upload(
        self, path: Path, key: str, *, size: int, sha256: str, on_bytes: OnBytes | None = None
    ) -> ObjectInfo:
        """Write the local file ``path`` to ``key`` whole or not at all, and make sure that its bytes arrived.

        The bytes sent are compared with ``sha256`` before the object comes to be. What arrived is compared by
        its ETag where that is S3's md5, and else by reading it back.

        Raises:
            CorruptCacheError: the file has another size or sha256, or other bytes arrive each time.
        """

        def send() -> ObjectInfo:
            parts = HashedParts(path, size, sha256, on_bytes)
            try:
                etag = self._put_parts(key, parts, size, sha256)
                if etag != parts.etag() and (got := self._stream(key, None, size, None)) != sha256:
                    raise WrongBytesError(
                        f"{self.url}/{key}: other bytes arrived than were sent (sha256 {got}, not {sha256})"
                    )
            except BaseException:
                _moved(on_bytes, -parts.sent)
                raise
            info = self.head(key)
            if info is None or info.size != size:
                raise RemoteError(f"writing {key} at {self.url}: it is not there after it was written")
            return info

        return self._attempts(send)

    def put(self, key: str, content: bytes, *, create: bool = False) -> bool:
        """Write a small object; with ``create`` only if there is none.

        Returns:
            Whether it was written. When an answer was lost, an object that we did create may count as
            another's: compare its content.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        store = self._backend.store(writing=True)
        attributes = self._attributes(hashlib.sha256(content).hexdigest())
        there = (AlreadyExistsError, PreconditionError)

        def write() -> bool:
            try:
                with self._asking(f"writing {key}", passing=(*there, NotSupportedError)):
                    mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
                    obstore.put(store, self._key(key), content, mode=mode, attributes=attributes)
            except there:
                return False
            except NotSupportedError:  # a server without conditional writes: nearly as good
                return False if self.head(key) is not None else self.put(key, content)
            except RemoteError as error:
                error.repeated = error.repeated and not create  # obstore repeats only what is idempotent
                raise
            if self.get(key, len(content)) != content:
                raise WrongBytesError(
                    f"writing {key} at {self.url}: it reads differently from what was written"
                )
            return True

        return self._attempts(write)

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        import obstore

        try:
            with self._asking(f"looking at {key}"):
                store = self._backend.store(writing=False)
                result = obstore.get(store, self._key(key), options={"head": True})
                return self._info(result.meta, result.attributes.get(SHA256_ATTRIBUTE))
        except MissingObjectError:
            return None
        except (AccessError, RemoteError):
            self._open(key)  # the answer to HEAD has no words; the one to GET has
            raise

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below ``prefix`` (whole names: ``rows`` does not match ``rows2/x``)."""
        import obstore

        place = self._key(prefix) if prefix else self._backend.key(self._prefix)
        with self._asking("listing"):
            for batch in obstore.list(self._backend.store(writing=False), place or None):
                yield from (self._info(meta, None) for meta in batch)

    def folders(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        import obstore

        with self._asking("listing"):
            store = self._backend.store(writing=False)
            found = obstore.list_with_delimiter(store, self._backend.key(self._prefix) or None)
            folders = [str(folder).rsplit("/", 1)[-1] for folder in found["common_prefixes"]]
            return sorted(folders), [self._info(meta, None) for meta in found["objects"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        import obstore

        store = self._backend.store(writing=True)
        for first in range(0, len(keys), 1000):  # what S3 takes at once
            with self._asking("removing"):
                try:
                    obstore.delete(store, [self._key(key) for key in keys[first : first + 1000]])
                except FileNotFoundError:  # local files are missed by their store
                    for key in keys[first : first + 1000]:
                        self._delete_one(key)

    def _delete_one(self, key: str) -> None:
        import obstore

        try:
            obstore.delete(self._backend.store(writing=True), self._key(key))
        except FileNotFoundError:
            return

    def _put_parts(self, key: str, parts: HashedParts, size: int, sha256: str) -> str:
        """Returns the ETag."""
        import obstore

        store, attributes = self._backend.store(writing=True), self._attributes(sha256)
        with self._asking(f"writing {key}"):
            if size <= part_size(size):
                content = b"".join(parts)
                done = obstore.put(store, self._key(key), content, attributes=attributes, use_multipart=False)
            else:
                done = obstore.put(
                    store,
                    self._key(key),
                    iter(parts),
                    attributes=attributes,
                    use_multipart=True,
                    chunk_size=part_size(size),
                    max_concurrency=2,
                )
        return (done["e_tag"] or "").strip('"')

    def _fetch(self, key: str, file: BinaryIO, size: int, sha256: str, on_bytes: OnBytes | None) -> None:
        def fetch() -> None:
            got = self._stream(key, file, size, on_bytes)
            if got != sha256:
                _moved(on_bytes, -size)
                raise WrongBytesError(f"{self.url}/{key} is damaged: sha256 is {got}, expected {sha256}")

        self._attempts(fetch)

    def _stream(self, key: str, file: BinaryIO | None, size: int, on_bytes: OnBytes | None) -> str:
        """Read an object once, into ``file`` if there is one; returns its sha256."""
        digest, done = hashlib.sha256(), 0
        if file is not None:
            file.seek(0)
            file.truncate()
        try:
            result = self._open(key)
            if result.meta["size"] != size:
                raise WrongBytesError(f"{self.url}/{key}: {result.meta['size']} bytes, expected {size}")
            for chunk in self._chunks(key, result):
                if done + len(chunk) > size:
                    raise WrongBytesError(f"{self.url}/{key}: more than the expected {size} bytes")
                digest.update(chunk)
                if file is not None:
                    write_all(file, chunk)
                done += len(chunk)
                _moved(on_bytes, len(chunk))
            if done != size:
                raise RemoteError(f"reading {key} at {self.url}: got {done} of its {size} bytes")
        except BaseException:
            _moved(on_bytes, -done)
            raise
        return digest.hexdigest()

    def _open(self, key: str) -> "GetResult":
        import obstore

        with self._asking(f"reading {key}"):
            return obstore.get(self._backend.store(writing=False), self._key(key))

    def _chunks(self, key: str, result: "GetResult") -> Iterator[bytes]:
        stream = iter(result.stream(min_chunk_size=_CHUNK_BYTES))
        while True:
            with self._asking(f"reading {key}"):
                chunk = next(stream, None)
            if chunk is None:
                return
            yield chunk

    def _attempts(self, work: Callable[[], T]) -> T:
        """Do ``work`` again after failures that may pass; obstore's own retries do not cover wrong bytes."""
        patience = self._backend.patience
        for attempt in range(1, patience.max_attempts + 1):
            try:
                return work()
            except (RemoteError, WrongBytesError) as error:
                given_up = isinstance(error, RemoteError) and error.repeated
                if given_up or attempt == patience.max_attempts:
                    raise
                time.sleep(patience.pause_seconds(attempt))
        raise AssertionError("unreachable")

    @contextmanager
    def _asking(self, what: str, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except SaecacheError:
            raise
        except passing:
            self._backend.proven = True
            raise
        except (BaseError, FileNotFoundError, PermissionError, NotImplementedError) as error:
            self._backend.proven = self._backend.proven or take_apart(error).status is not None
            raise translate(error, what, self.url) from None
        self._backend.proven = True

    def _attributes(self, sha256: str) -> dict[str, str] | None:
        return {SHA256_ATTRIBUTE: sha256} if self._backend.stores_attributes else None

    def _key(self, key: str) -> str:
        return self._backend.key(f"{self._prefix}/{key}".lstrip("/"))

    def _info(self, meta: "ObjectMeta", sha256: str | None) -> ObjectInfo:
        key = self._backend.path(meta["path"]).removeprefix(self._prefix).lstrip("/")
        etag = (meta["e_tag"] or "").strip('"') or None
        return ObjectInfo(key, meta["size"], meta["last_modified"], etag, sha256)


def _moved(on_bytes: OnBytes | None, count: int) -> None:
    if on_bytes and count:
        on_bytes(count)
