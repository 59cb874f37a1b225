"""Asking an object store: names, errors, retries. What every operation on a location is made of."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from ...common.errors import SaecacheError
from .bucket import Backend
from .failures import AccessError, MissingObjectError, RemoteError, WrongBytesError, take_apart, translate

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta

T = TypeVar("T")
SHA256_ATTRIBUTE = "sha256"
_LEAST_BLOCK_BYTES = 64 << 10


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object. ``sha256`` is what its writer recorded beside it, if anything."""

    key: str
    size: int
    modified: datetime
    etag: str | None
    sha256: str | None = None


class Access:
    """A prefix of one bucket; keys are relative to it."""

    def __init__(self, backend: Backend, url: str, prefix: str) -> None:
        self.backend = backend
        self.url = url
        self.prefix = prefix

    @contextmanager
    def asking(self, what: str, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        """Translate what obstore raises inside, but for ``passing``; remember that something answered."""
        from obstore.exceptions import BaseError

        try:
            yield
        except SaecacheError:
            raise
        except passing:
            self.backend.proven = True
            raise
        except (BaseError, FileNotFoundError, PermissionError, NotImplementedError) as error:
            self.backend.proven = self.backend.proven or take_apart(error).status is not None
            raise translate(error, what, self.url) from None
        self.backend.proven = True

    def attempts(self, work: Callable[[], T]) -> T:
        """Do ``work`` again after failures that may pass; obstore's own retries do not cover wrong bytes."""
        patience = self.backend.patience
        first_failure: float | None = None
        for attempt in range(1, patience.max_attempts + 1):
            try:
                return work()
            except (RemoteError, WrongBytesError) as error:
                given_up = isinstance(error, RemoteError) and error.repeated
                first_failure = first_failure or time.monotonic()
                too_late = time.monotonic() - first_failure > patience.retry_seconds
                if given_up or too_late or attempt == patience.max_attempts:
                    raise
                time.sleep(patience.pause_seconds(attempt))
        raise AssertionError("unreachable")

    def open(self, key: str) -> "GetResult":
        """An object whose bytes are not read yet."""
        import obstore

        with self.asking(f"reading {key}"):
            return obstore.get(self.backend.store(writing=False), self.key(key))

    def chunks(self, key: str, result: "GetResult") -> Iterator[bytes]:
        """Its bytes in blocks as they come: only small ones are put together, which copies them."""
        stream = iter(result.stream(min_chunk_size=_LEAST_BLOCK_BYTES))
        while True:
            with self.asking(f"reading {key}"):
                chunk = next(stream, None)
            if chunk is None:
                return
            yield chunk

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        import obstore

        try:
            with self.asking(f"looking at {key}"):
                store = self.backend.store(writing=False)
                result = obstore.get(store, self.key(key), options={"head": True})
                return self.info(result.meta, result.attributes.get(SHA256_ATTRIBUTE))
        except MissingObjectError:
            return None
        except (AccessError, RemoteError):
            self.open(key)  # the answer to HEAD has no words; the one to GET has
            raise

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        import obstore

        store = self.backend.store(writing=True)
        for first in range(0, len(keys), 1000):  # what S3 takes at once
            with self.asking("removing"):
                try:
                    obstore.delete(store, [self.key(key) for key in keys[first : first + 1000]])
                except FileNotFoundError:  # local files are missed by their store
                    for key in keys[first : first + 1000]:
                        self._remove_one(key)

    def _remove_one(self, key: str) -> None:
        import obstore

        try:
            obstore.delete(self.backend.store(writing=True), self.key(key))
        except FileNotFoundError:
            return

    def attributes(self, sha256: str) -> dict[str, str] | None:
        """What is recorded beside an object, where the store can."""
        return {SHA256_ATTRIBUTE: sha256} if self.backend.stores_attributes else None

    def key(self, key: str) -> str:
        """The name of an object in its bucket."""
        return self.backend.key(f"{self.prefix}/{key}".lstrip("/"))

    def info(self, meta: "ObjectMeta", sha256: str | None) -> ObjectInfo:
        """What obstore says of an object, with its key here."""
        key = self.backend.path(meta["path"]).removeprefix(self.prefix).lstrip("/")
        etag = (meta["e_tag"] or "").strip('"') or None
        return ObjectInfo(key, meta["size"], meta["last_modified"], etag, sha256)
