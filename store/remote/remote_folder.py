"""A place in object storage: small objects, whole files, listings; retried, checked, errors translated."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...common.errors import CorruptCacheError, SaecacheError, UsageError
from ..durable import replacing
from .access import Access, ObjectInfo
from .bucket import Backend
from .download import checksum, fetch, send
from .failures import RemoteError, WrongBytesError
from .retries import Patience
from .upload import OnBytes
from .urls import parse_url

T = TypeVar("T")


def open_remote_folder(url: str, patience: Patience | None = None) -> "RemoteFolder":
    """The place a URL names: s3://, gs://, az://, file:// or memory:// (for this process only).

    Nothing is asked of the server yet. Credentials, region and endpoint come from the standard environment
    variables and, for s3://, from the AWS profile files.

    Raises:
        UsageError: not such a URL, or the environment's settings contradict each other.
    """
    parsed = parse_url(url)
    return RemoteFolder(Backend(parsed, patience or Patience()), str(parsed), parsed.prefix)


class RemoteFolder:
    """See :func:`open_remote_folder`. Keys are relative to it. Safe to use from several threads.

    Every method raises:
        AccessError: credentials, rights or the bucket are wrong; at once, without retries.
        MissingObjectError: no such object.
        RemoteError: the store kept failing although the request was repeated.
    """

    def __init__(self, backend: Backend, url: str, prefix: str) -> None:
        self.url = url
        self._access = Access(backend, url, prefix)

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself, with its own credentials."""
        return open_remote_folder, (self.url, self._access.backend.patience)

    def child(self, name: str) -> "RemoteFolder":
        """The location ``name`` below this one."""
        return RemoteFolder(
            self._access.backend, f"{self.url}/{name}", f"{self._access.prefix}/{name}".lstrip("/")
        )

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
            result = self._access.open(key)
            if (size := result.meta["size"]) > max_bytes:
                raise CorruptCacheError(f"{self.url}/{key}: {size} bytes, expected at most {max_bytes}")
            content = bytearray()
            for chunk in self._access.chunks(key, result):
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
            return self._access.attempts(read)
        except WrongBytesError:
            raise refusals[-1] from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of an object; unlike :meth:`download` compared with nothing."""
        import obstore

        def read() -> bytes:
            with self._access.asking(f"reading {key}"):
                store = self._access.backend.store(writing=False)
                content = bytes(obstore.get_range(store, self._access.key(key), start=start, length=length))
            if len(content) != length:
                raise RemoteError(f"reading {key} at {self.url}: got {len(content)} of {length} bytes")
            return content

        return self._access.attempts(read)

    def download(
        self,
        key: str,
        path: Path,
        *,
        size: int,
        sha256: str,
        on_bytes: OnBytes | None = None,
        durable: bool = True,
    ) -> None:
        """Write an object to ``path``: under a temporary name, checked, synced, then renamed.

        With ``durable=False`` straight to ``path`` and unsynced, for whoever does the rest himself.

        Raises:
            CorruptCacheError: its size or sha256 differ from the expected ones each time it is read.
            OSError: of the local disk.
        """
        if durable:
            with replacing(path) as file:
                fetch(self._access, key, file, size, sha256, on_bytes)
        else:
            with path.open("ab", buffering=0) as file:  # "wb" would truncate: see stream()
                fetch(self._access, key, file, size, sha256, on_bytes)

    def checksum(self, key: str, *, size: int, on_bytes: OnBytes | None = None) -> str:
        """Read an object of ``size`` bytes and return its sha256, keeping nothing.

        Raises:
            CorruptCacheError: it has another size.
        """
        return checksum(self._access, key, size, on_bytes)

    def upload(
        self, path: Path, key: str, *, size: int, sha256: str, on_bytes: OnBytes | None = None
    ) -> ObjectInfo:
        """Write the local file ``path`` to ``key`` whole or not at all, and make sure that its bytes arrived.

        The bytes sent are compared with ``sha256`` before the object comes to be. What arrived is compared by
        its ETag where that is S3's md5, and else by reading it back.

        Raises:
            CorruptCacheError: the file has another size or sha256, or other bytes arrive each time.
        """
        return send(self._access, path, key, size, sha256, on_bytes)

    def put(self, key: str, content: bytes, *, create: bool = False) -> bool:
        """Write a small object; with ``create`` only if there is none.

        Returns:
            Whether it was written. When an answer was lost, an object that we did create may count as
            another's: compare its content.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        store = self._access.backend.store(writing=True)
        attributes = self._access.attributes(hashlib.sha256(content).hexdigest())
        there = (AlreadyExistsError, PreconditionError)
        unsupported = (NotSupportedError, NotImplementedError)

        def write() -> bool:
            try:
                with self._access.asking(f"writing {key}", passing=(*there, *unsupported)):
                    mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
                    obstore.put(store, self._access.key(key), content, mode=mode, attributes=attributes)
            except there:
                return False
            except unsupported:  # a server without conditional writes: nearly as good
                return False if self.head(key) is not None else self.put(key, content)
            except RemoteError as error:
                if create and not error.answered:  # obstore repeats only what is idempotent
                    error.repeated = False
                raise
            if self.get(key, len(content)) != content:
                raise WrongBytesError(
                    f"writing {key} at {self.url}: it reads differently from what was written"
                )
            return True

        return self._access.attempts(write)

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        return self._access.head(key)

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below ``prefix`` (whole names: ``rows`` does not match ``rows2/x``)."""
        import obstore

        place = self._access.key(prefix) if prefix else self._access.backend.key(self._access.prefix)
        with self._access.asking("listing"):
            for batch in obstore.list(self._access.backend.store(writing=False), place or None):
                yield from (self._access.info(meta, None) for meta in batch)

    def folders(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        import obstore

        with self._access.asking("listing"):
            store = self._access.backend.store(writing=False)
            found = obstore.list_with_delimiter(store, self._access.backend.key(self._access.prefix) or None)
            folders = [str(folder).rsplit("/", 1)[-1] for folder in found["common_prefixes"]]
            return sorted(folders), [self._access.info(meta, None) for meta in found["objects"]]

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        self._access.remove(keys)
