"""A place in object storage: small objects, whole files, listings. Repeated, checked, errors translated."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from ...common.errors import CorruptCacheError, SaecacheError, UsageError
from . import download, upload
from .bucket import Bucket
from .failures import AccessError, MissingObjectError, RemoteError, WrongBytesError, is_missing_bucket
from .retries import LEAST_BODY_BYTES, Patience, repeat
from .upload import OnBytes
from .urls import parse_url

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutResult

T = TypeVar("T")
SHA256_ATTRIBUTE = "sha256"
_REMOVED_AT_ONCE = 1000  # what S3 takes
_LISTED_AT_ONCE = 1000  # what S3 gives


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object. ``sha256`` is what its writer recorded beside it, if anything."""

    key: str
    size: int
    modified: datetime
    etag: str | None
    sha256: str | None = None


def open_remote_folder(url: str, patience: Patience | None = None) -> "RemoteFolder":
    """The place a URL names: s3://, gs://, az://, file:// or memory:// (for this process only).

    Nothing is asked of the server yet. Credentials, region and endpoint come from the standard environment
    variables and, for s3://, from the AWS profiles.

    Raises:
        UsageError: not such a URL, or the environment's settings contradict each other.
    """
    parsed = parse_url(url)
    patience = patience or Patience()
    if parsed.scheme in ("file", "memory"):  # what a disk refuses, it refuses again
        patience = replace(patience, max_retries=min(patience.max_retries, 3))
    return RemoteFolder(Bucket(parsed, patience), str(parsed), parsed.prefix)


class RemoteFolder:
    """See :func:`open_remote_folder`. Keys are relative to it. Safe to use from several threads.

    Every method raises:
        AccessError: credentials, rights or the bucket are wrong; at once, without retries.
        MissingObjectError: no such object.
        RemoteError: the store kept failing although the request was repeated.
    """

    def __init__(self, bucket: Bucket, url: str, prefix: str) -> None:
        self.bucket = bucket
        self.url = url
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself, with its own credentials."""
        return open_remote_folder, (self.url, self.bucket.patience)

    def child(self, name: str) -> "RemoteFolder":
        """The place ``name`` below this one."""
        return RemoteFolder(self.bucket, f"{self.url}/{name}", f"{self._prefix}/{name}".lstrip("/"))

    def name_of(self, key: str) -> str:
        """The name of an object in its bucket."""
        return self.bucket.key(f"{self._prefix}/{key}".lstrip("/"))

    def repeat(self, work: Callable[[], T]) -> T:
        """Every request goes through here: done again while its failures are of the kind that passes."""
        return repeat(work, self.bucket.patience, lambda: self.bucket.has_answered)

    # Reading

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

        def once() -> T:
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
            return self.repeat(once)
        except WrongBytesError:
            raise refusals[-1] from None

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

        With ``durable=False`` straight to ``path`` and unsynced, for a caller who does the rest himself.

        Raises:
            CorruptCacheError: its size or sha256 differ from the expected ones each time it is read.
            OSError: of the local disk.
        """
        download.fetch(self, key, path, size, sha256, on_bytes, durable=durable)

    def checksum(self, key: str, *, size: int, on_bytes: OnBytes | None = None) -> str:
        """Read an object of ``size`` bytes and return its sha256, keeping nothing.

        Raises:
            CorruptCacheError: it has another size.
        """
        return self.repeat(lambda: download.stream(self, key, None, size, on_bytes))

    def open_once(self, key: str, size: int) -> Iterator[bytes]:
        """The bytes of an object in blocks as they come, asked for once; for use inside :meth:`repeat`.

        Raises:
            WrongBytesError: it has another size.
        """
        result = self._open(key)
        if result.meta["size"] != size:
            raise WrongBytesError(f"{self.url}/{key}: {result.meta['size']} bytes, expected {size}")
        return self._chunks(key, result)

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        import obstore

        def once() -> ObjectInfo:
            with self._translated(f"looking at {key}"):
                store, name = self.bucket.store("reading"), self.name_of(key)
                result = self.bucket.ask(lambda: obstore.get_async(store, name, options={"head": True}))
                return self._info(result.meta, result.attributes.get(SHA256_ATTRIBUTE))

        try:
            return self.repeat(once)
        except MissingObjectError:
            return None
        except (AccessError, RemoteError):
            self._open(key)  # the answer to HEAD has no words; the one to GET has
            raise

    # Listing

    def objects(
        self, prefix: str = "", *, must_show: str | None = None, most: int | None = None
    ) -> list[ObjectInfo]:
        """Every object below ``prefix`` (whole names: ``rows`` does not match ``rows2/x``).

        Args:
            must_show: an object that the caller has written. A listing without it is not believed as long as
                the object is there.
            most: stop after so many.
        """
        import obstore

        place = self.name_of(prefix) if prefix else self.bucket.key(self._prefix)

        async def gather() -> list[ObjectInfo]:
            store, seconds = self.bucket.store("reading"), self.bucket.patience.upload_seconds
            pages = aiter(obstore.list(store, place or None, chunk_size=_LISTED_AT_ONCE))
            found: dict[str, ObjectInfo] = {}
            while (page := await asyncio.wait_for(anext(pages, None), seconds)) is not None:
                for meta in page:
                    info = self._info(meta, None)
                    if info.key in found:
                        raise RemoteError(f"listing {self.url}: the server lists {info.key} twice")
                    found[info.key] = info
                    if len(found) == most:
                        return [*found.values()]
            return [*found.values()]

        def once() -> list[ObjectInfo]:
            with self._translated("listing"):
                found = self.bucket.ask(gather, bounded=False)
            if must_show is not None and all(info.key != must_show for info in found):
                self._doubt(self.head(must_show) is not None, f"does not show {must_show}, which is there")
            return found

        return self.repeat(once) or self._confirm_empty(once)

    def folders(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        import obstore

        place = self.bucket.key(self._prefix) or None

        def once() -> tuple[list[str], list[ObjectInfo]]:
            with self._translated("listing"):
                store = self.bucket.store("reading")
                found = self.bucket.ask(lambda: obstore.list_with_delimiter_async(store, place))
                folders = [str(folder).rsplit("/", 1)[-1] for folder in found["common_prefixes"]]
                objects = [self._info(meta, None) for meta in found["objects"]]
            return sorted(folders), objects

        found = self.repeat(once)
        return found if any(found) else self._confirm_empty(once)

    def _confirm_empty(self, listing: Callable[[], T]) -> T:
        """List again: a proxy that answers with a page of its own makes every place look empty."""
        absent = f".absent-{uuid4().hex}"
        if self.bucket.stores_attributes and self.head(absent) is not None:
            self._doubt(True, f"claims to have {absent}, which nobody wrote")
        return self.repeat(listing)

    def _doubt(self, wrong: bool, why: str) -> None:
        if wrong:
            raise RemoteError(f"listing {self.url}: {self.bucket.server} {why}; its listing is not believed")

    # Writing

    def put(self, key: str, content: bytes, *, create: bool = False) -> bool:
        """Write a small object and read it back; with ``create`` only if there is none.

        Returns:
            Whether it was written. When an answer was lost, an object that we did create may count as
            another's: compare its content.
        """
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        there = (AlreadyExistsError, PreconditionError)
        unsupported = (NotSupportedError, NotImplementedError)
        sha256 = hashlib.sha256(content).hexdigest()
        ours = False  # an object that we created may be written again, when it came out wrong

        def once() -> bool:
            nonlocal ours
            try:
                self.put_once(key, content, sha256, create=create and not ours, passing=there + unsupported)
            except there:
                return False
            except unsupported:  # a server without conditional writes: nearly as good
                return False if self.head(key) is not None else self.put(key, content)
            ours = True
            if self.get(key, max(len(content), 1 << 16)) != content:
                raise WrongBytesError(
                    f"writing {key} at {self.url}: it reads differently from what was written"
                )
            return True

        return self.repeat(once)

    def put_once(
        self,
        key: str,
        content: bytes,
        sha256: str,
        *,
        create: bool = False,
        passing: tuple[type[BaseException], ...] = (),
    ) -> "PutResult":
        """One request that writes an object whole; for use inside :meth:`repeat`."""
        import obstore

        store, name, attributes = self.bucket.store("writing"), self.name_of(key), self.attributes(sha256)
        with self._translated(f"writing {key}", passing):
            return self.bucket.ask(
                lambda: obstore.put_async(
                    store,
                    name,
                    content,
                    attributes=attributes,
                    mode="create" if create else "overwrite",
                    use_multipart=False,
                )
            )

    def upload(
        self, path: Path, key: str, *, size: int, sha256: str, on_bytes: OnBytes | None = None
    ) -> ObjectInfo:
        """Write the local file ``path`` to ``key`` whole or not at all, and make sure that its bytes arrived.

        The bytes sent are compared with ``sha256`` before the object comes to be. What arrived is compared by
        its ETag where that is S3's md5, and else by reading it back.

        Raises:
            CorruptCacheError: the file has another size or sha256, or other bytes arrive each time.
        """
        return self.repeat(lambda: upload.send(self, path, key, size, sha256, on_bytes))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        for first in range(0, len(keys), _REMOVED_AT_ONCE):
            names = [self.name_of(key) for key in keys[first : first + _REMOVED_AT_ONCE]]
            self.repeat(lambda names=names: self._delete_once(names))  # type: ignore[misc]

    def _delete_once(self, names: Sequence[str]) -> None:
        import obstore

        store = self.bucket.store("writing")
        with self._translated("removing"):
            try:
                self.bucket.ask(lambda: obstore.delete_async(store, names))
            except FileNotFoundError as error:  # some stores miss what is not there
                if is_missing_bucket(error):
                    raise
                for name in names if len(names) > 1 else ():
                    self._delete_once([name])

    def attributes(self, sha256: str) -> dict[str, str] | None:
        """What is recorded beside an object, where the store can."""
        return {SHA256_ATTRIBUTE: sha256} if self.bucket.stores_attributes else None

    # Requests

    def _translated(self, what: str, passing: tuple[type[BaseException], ...] = ()) -> Any:
        return self.bucket.translated(what, self.url, passing)

    def _open(self, key: str) -> "GetResult":
        """An object whose bytes are not read yet."""
        import obstore

        with self._translated(f"reading {key}"):
            store, name = self.bucket.store("reading"), self.name_of(key)
            return self.bucket.ask(lambda: obstore.get_async(store, name))

    def _chunks(self, key: str, result: "GetResult") -> Iterator[bytes]:
        """Its bytes in blocks as they come; ends with an error when next to nothing comes."""
        stream = iter(result.stream(min_chunk_size=1))
        since, got = monotonic(), 0
        while True:
            with self._translated(f"reading {key}"):
                chunk = next(stream, None)
            if chunk is None:
                return
            got += len(chunk)
            if (now := monotonic()) - since > self.bucket.patience.stall_seconds:
                if got < LEAST_BODY_BYTES:
                    raise RemoteError(
                        f"reading {key} at {self.url}: only {got} bytes came in {now - since:.0f} seconds"
                    )
                since, got = now, 0
            yield chunk

    def _info(self, meta: "ObjectMeta", sha256: str | None) -> ObjectInfo:
        """What the library says of an object, with its key here."""
        key = self.bucket.path(meta["path"]).removeprefix(self._prefix).lstrip("/")
        etag = (meta["e_tag"] or "").strip('"') or None
        return ObjectInfo(key, meta["size"], meta["last_modified"], etag, sha256)
