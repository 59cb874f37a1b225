"""The single requests to a place in object storage: repeated, bounded, their errors translated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from .bucket import Bucket
from .failures import AccessError, MissingObjectError, RemoteError, WrongBytesError, is_missing_bucket
from .retries import LEAST_BODY_BYTES, repeat

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutResult

T = TypeVar("T")
SHA256_ATTRIBUTE = "sha256"
_REMOVED_AT_ONCE = 1000  # what S3 takes

OnBytes = Callable[[int], None]
"""Called with the number of bytes moved since the last call; negative where they have to move again."""


def count_bytes(on_bytes: OnBytes | None, count: int) -> None:
    """Tell ``on_bytes``, if there is one, that bytes were moved."""
    if on_bytes and count:
        on_bytes(count)


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object. ``sha256`` is what its writer recorded beside it, if anything."""

    key: str
    size: int
    modified: datetime
    etag: str | None
    sha256: str | None = None


class ObjectRequests:
    """What a :class:`RemoteFolder` is made of. Keys are relative to the place. Threads may share it.

    Every method raises:
        AccessError: credentials, rights or the bucket are wrong; at once, without retries.
        MissingObjectError: no such object.
        RemoteError: the store kept failing although the request was repeated.
    """

    def __init__(self, bucket: Bucket, url: str, prefix: str) -> None:
        self.bucket = bucket
        self.url = url
        self.prefix = prefix

    def name_of(self, key: str) -> str:
        """The name of an object in its bucket."""
        return self.bucket.key(f"{self.prefix}/{key}".lstrip("/"))

    def repeat(self, work: Callable[[], T]) -> T:
        """Every request goes through here: done again while its failures are of the kind that passes."""
        return repeat(work, self.bucket.patience, lambda: self.bucket.has_answered)

    def open_once(self, key: str, size: int) -> Iterator[bytes]:
        """The bytes of an object in blocks as they come, asked for once; for use inside :meth:`repeat`.

        Raises:
            WrongBytesError: it has another size.
        """
        result = self.open(key)
        if result.meta["size"] != size:
            raise WrongBytesError(f"{self.url}/{key}: {result.meta['size']} bytes, expected {size}")
        return self.chunks(key, result)

    def read_range_once(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes of an object from ``start`` on, asked for once; for use inside :meth:`repeat`."""
        import obstore

        with self.translated(f"reading {key}"):
            store, name = self.bucket.store("reading"), self.name_of(key)
            found = bytes(
                self.bucket.ask(lambda: obstore.get_range_async(store, name, start=start, length=length))
            )
        if len(found) != length:
            raise WrongBytesError(f"{self.url}/{key}: {len(found)} bytes from {start}, expected {length}")
        return found

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        import obstore

        def once() -> ObjectInfo:
            with self.translated(f"looking at {key}"):
                store, name = self.bucket.store("reading"), self.name_of(key)
                result = self.bucket.ask(lambda: obstore.get_async(store, name, options={"head": True}))
                return self.info(result.meta, result.attributes.get(SHA256_ATTRIBUTE))

        try:
            return self.repeat(once)
        except MissingObjectError:
            return None
        except (AccessError, RemoteError):
            self.open(key)  # the answer to HEAD has no words; the one to GET has
            raise

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
        with self.translated(f"writing {key}", passing):
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

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        for first in range(0, len(keys), _REMOVED_AT_ONCE):
            names = [self.name_of(key) for key in keys[first : first + _REMOVED_AT_ONCE]]
            self.repeat(lambda names=names: self._delete_once(names))  # type: ignore[misc]

    def _delete_once(self, names: Sequence[str]) -> None:
        import obstore

        store = self.bucket.store("writing")
        with self.translated("removing"):
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

    def translated(self, what: str, passing: tuple[type[BaseException], ...] = ()) -> Any:
        return self.bucket.translated(what, self.url, passing)

    def open(self, key: str) -> "GetResult":
        """An object whose bytes are not read yet."""
        import obstore

        with self.translated(f"reading {key}"):
            store, name = self.bucket.store("reading"), self.name_of(key)
            return self.bucket.ask(lambda: obstore.get_async(store, name))

    def chunks(self, key: str, result: "GetResult") -> Iterator[bytes]:
        """Its bytes in blocks as they come; ends with an error when next to nothing comes."""
        stream = iter(result.stream(min_chunk_size=1))
        since, got = monotonic(), 0
        while True:
            with self.translated(f"reading {key}"):
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

    def info(self, meta: "ObjectMeta", sha256: str | None) -> ObjectInfo:
        """What the library says of an object, with its key here."""
        key = self.bucket.path(meta["path"]).removeprefix(self.prefix).lstrip("/")
        etag = (meta["e_tag"] or "").strip('"') or None
        return ObjectInfo(key, meta["size"], meta["last_modified"], etag, sha256)
