"""The single requests to a place in object storage: made once, bounded in time, errors translated."""

import asyncio
import hashlib
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError

from .bucket import Bucket, Purpose
from .failures import RemoteError, WrongBytesError, is_missing_bucket, is_not_supported
from .retries import LEAST_BODY_BYTES, repeat

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutResult
    from obstore.store import ObjectStore

T = TypeVar("T")
SHA256_ATTRIBUTE = "sha256"
_IMPOSSIBLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, or bytes that are no UTF-8
_LISTED_AT_ONCE = 1000  # what S3 gives

OnBytes = Callable[[int], None]
"""Called with the number of bytes moved since the last call; negative where they have to move again."""


def ignore_bytes(_count: int) -> None:
    """The :data:`OnBytes` of a caller who does not want to know."""


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object. ``sha256`` is what its writer recorded beside it, if anything."""

    key: str
    size: int
    modified: datetime | None  # None where a listing does not say it
    etag: str | None
    sha256: str | None = None


def _list_disk(folder: Path) -> tuple[list[str], list[ObjectInfo]]:
    """As :meth:`ObjectRequests.list_folders_once`. The library fails at one odd name, or a loop of links.

    What no object can be called, and links to nothing, are left out.
    """
    folders: list[str] = []
    objects: list[ObjectInfo] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            with suppress(OSError):  # a link to nothing, or removed meanwhile
                found = entry.stat()
                if _IMPOSSIBLE.search(entry.name):
                    continue
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry.name)
                else:
                    modified = datetime.fromtimestamp(found.st_mtime, UTC)
                    objects.append(ObjectInfo(entry.name, found.st_size, modified, None))
    return sorted(folders), objects


class ObjectRequests:
    """Each request of a :class:`RemoteFolder`, once: for use inside :meth:`repeat`. Threads may share it.

    Keys are relative to the place. Every method raises:
        AccessError: credentials, rights or the bucket are wrong; asking again changes nothing.
        MissingObjectError: no such object.
        RemoteError: the store failed, or its answer makes no sense.
    """

    def __init__(self, bucket: Bucket, url: str, prefix: str) -> None:
        self.bucket = bucket
        self.url = url
        self.prefix = prefix

    @property
    def disk(self) -> Path | None:
        """The folder of this machine that a ``file://`` URL names."""
        return None if self.bucket.stores_attributes else Path("/", self.prefix)

    def repeat(self, work: Callable[[], T]) -> T:
        """Every request goes through here: made again while its failures are of the kind that passes."""
        return repeat(work, self.bucket.patience, lambda: self.bucket.has_answered)

    def translated(
        self, what: str, passing: tuple[type[BaseException], ...] = ()
    ) -> AbstractContextManager[None]:
        """Translate what the library raises inside, except ``passing``."""
        return self.bucket.translated(what, self.url, passing)

    def name_of(self, key: str) -> str:
        """The name of an object in its bucket."""
        return self.bucket.key(f"{self.prefix}/{key}".lstrip("/"))

    def open_once(self, key: str) -> "GetResult":
        """An object whose bytes are not read yet."""
        name = self.name_of(key)
        self.bucket.check_regular(name)
        return self._ask(f"reading {key}", lambda store: obstore.get_async(store, name))

    def chunks_once(self, key: str, result: "GetResult") -> Iterator[bytes]:
        """Its bytes in blocks as they come, as many as it has; an error when next to nothing comes."""
        stream, size, done = iter(result.stream(min_chunk_size=1)), result.meta["size"], 0
        since, got = monotonic(), 0
        while True:
            with self.translated(f"reading {key}"):
                chunk = next(stream, None)
            if chunk is None:
                break
            done, got = done + len(chunk), got + len(chunk)
            if done > size:
                raise WrongBytesError(f"{self.url}/{key}: more than the expected {size} bytes")
            if (now := monotonic()) - since > self.bucket.patience.stall_seconds:
                if got < LEAST_BODY_BYTES:
                    raise RemoteError(
                        f"reading {key} at {self.url}: only {got} bytes came in {now - since:.0f} seconds"
                    )
                since, got = now, 0
            yield chunk
        if done != size:
            raise RemoteError(f"reading {key} at {self.url}: got {done} of its {size} bytes")

    def stream_once(
        self,
        key: str,
        size: int,
        take: Callable[[bytes], object] = lambda _: None,
        on_bytes: OnBytes = ignore_bytes,
    ) -> str:
        """Read an object whose bytes are given to ``take`` as they come; returns its sha256.

        Raises:
            WrongBytesError: it has another size.
        """
        digest, done = hashlib.sha256(), 0
        result = self.open_once(key)
        if result.meta["size"] != size:
            raise WrongBytesError(f"{self.url}/{key}: {result.meta['size']} bytes, expected {size}")
        try:
            for chunk in self.chunks_once(key, result):
                digest.update(chunk)
                take(chunk)
                done += len(chunk)
                on_bytes(len(chunk))
        except BaseException:
            on_bytes(-done)
            raise
        return digest.hexdigest()

    def read_range_once(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes of an object from ``start`` on."""
        name = self.name_of(key)
        found = self._ask(
            f"reading {key}",
            lambda store: obstore.get_range_async(store, name, start=start, length=length),
        )
        if len(found) != length:
            raise WrongBytesError(f"{self.url}/{key}: {len(found)} bytes from {start}, expected {length}")
        return bytes(found)

    def head_once(self, key: str) -> ObjectInfo:
        """What the store says of an object."""
        name = self.name_of(key)
        result = self._ask(
            f"looking at {key}", lambda store: obstore.get_async(store, name, options={"head": True})
        )
        return self._info(result.meta, result.attributes.get(SHA256_ATTRIBUTE))

    def put_once(
        self,
        key: str,
        content: bytes,
        sha256: str,
        *,
        create: bool = False,
        passing: tuple[type[BaseException], ...] = (),
    ) -> "PutResult":
        """Write an object whole in one request."""
        return self._ask(
            f"writing {key}",
            lambda store: obstore.put_async(
                store,
                self.name_of(key),
                content,
                attributes=self._attributes(sha256),
                mode="create" if create else "overwrite",
                use_multipart=False,
            ),
            "writing",
            passing,
        )

    def put_parts_once(self, key: str, parts: Iterator[bytes], sha256: str, part_bytes: int) -> "PutResult":
        """Write a large object in parts, which the library repeats by itself; whole or not at all."""
        with self.translated(f"writing {key}"):
            return obstore.put(
                self.bucket.store("parts"),
                self.name_of(key),
                parts,
                attributes=self._attributes(sha256),
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=2,
            )

    def delete_once(self, keys: Sequence[str]) -> None:
        """Remove at most a thousand objects; those that are not there are not missed."""
        names = [self.name_of(key) for key in keys]
        with self.translated("removing"):
            store = self.bucket.store("removing singly" if self.bucket.removes_singly else "writing")
            try:
                self.bucket.ask(lambda: obstore.delete_async(store, names))
            except FileNotFoundError as error:  # some stores miss what is not there
                if is_missing_bucket(error):
                    raise
                for key in keys if len(keys) > 1 else ():
                    self.delete_once([key])
            except BaseError as error:
                if self.bucket.removes_singly or not is_not_supported(error):
                    raise
                self.bucket.removes_singly = True
                self.delete_once(keys)

    def list_once(self, most: int | None) -> list[ObjectInfo]:
        """Every object here and in the folders below, or the first ``most`` of them."""
        path = self.bucket.key(self.prefix) or None

        async def gather() -> list[ObjectInfo]:
            pages = aiter(obstore.list(self.bucket.store("reading"), path, chunk_size=_LISTED_AT_ONCE))
            found: dict[str, ObjectInfo] = {}
            seconds = self.bucket.patience.upload_seconds
            while (page := await asyncio.wait_for(anext(pages, None), seconds)) is not None:
                for info in map(self._info, page):
                    if info.key in found:
                        raise RemoteError(f"listing {self.url}: the server lists {info.key} twice")
                    found[info.key] = info
                    if len(found) == most:
                        return [*found.values()]
            return [*found.values()]

        with self.translated("listing"):
            return self.bucket.ask(gather, bounded=False)

    def list_folders_once(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        if self.disk is not None:
            with self.translated("listing"):
                return _list_disk(self.disk)
        path = self.bucket.key(self.prefix) or None
        found = self._ask("listing", lambda store: obstore.list_with_delimiter_async(store, path))
        folders = [str(folder).rsplit("/", 1)[-1] for folder in found["common_prefixes"]]
        return sorted(folders), [self._info(meta) for meta in found["objects"]]

    def _ask(
        self,
        what: str,
        request: "Callable[[ObjectStore], Awaitable[T]]",
        purpose: Purpose = "reading",
        passing: tuple[type[BaseException], ...] = (),
    ) -> T:
        with self.translated(what, passing):
            store = self.bucket.store(purpose)
            return self.bucket.ask(lambda: request(store))

    def _attributes(self, sha256: str) -> dict[str, str] | None:
        """What is recorded beside an object, where the store can."""
        return {SHA256_ATTRIBUTE: sha256} if self.bucket.stores_attributes else None

    def _info(self, meta: "ObjectMeta", sha256: str | None = None) -> ObjectInfo:
        """What the library says of an object, with its key here."""
        key = self.bucket.path(meta["path"]).removeprefix(self.prefix).lstrip("/")
        etag = (meta["e_tag"] or "").strip('"') or None
        return ObjectInfo(key, meta["size"], meta["last_modified"], etag, sha256)
