"""A place in object storage: small objects, whole files, listings. All requests are repeated and checked."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

from ....common.errors import CorruptCacheError, SaecacheError, UsageError
from ...durable import replacing
from .failures import (
    AccessError,
    MissingObjectError,
    RemoteError,
    UnreadableAnswerError,
    WrongBytesError,
)
from .file_blocks import WRITE_BYTES, BlockWriter, HashedParts, part_size
from .foreign_answers import foreign_listing
from .object_requests import ObjectInfo, ObjectRequests, OnBytes, ignore_bytes
from .retries import Patience

T = TypeVar("T")
Found = TypeVar("Found", bound=Iterable[object])
_REMOVED_AT_ONCE = 1000  # what S3 takes
_IS_THERE = (AlreadyExistsError, PreconditionError)
_UNSUPPORTED = (NotSupportedError, NotImplementedError)


class RemoteFolder(ObjectRequests):
    """See :func:`.by_url.open_remote_folder`. Every method raises, beside what it says:

    AccessError: credentials, rights or the bucket are wrong; at once, without retries.
    MissingObjectError: no such object.
    RemoteError: the store kept failing although the request was repeated.
    """

    reopen: "ClassVar[Callable[[str, Patience], RemoteFolder] | None]" = None
    """Opens the place of a URL; :mod:`.by_url` sets it, which knows all kinds of places."""

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself, with its own credentials."""
        reopen = type(self).reopen
        assert reopen is not None, f"{self!r} was not opened by open_remote_folder"
        return reopen, (self.url, self.bucket.patience)

    def child(self, name: str) -> "RemoteFolder":
        """The place ``name`` below this one."""
        return RemoteFolder(self.bucket, f"{self.url}/{name}", f"{self.prefix}/{name}".lstrip("/"))

    def objects(self, *, must_show: str | None = None, most: int | None = None) -> list[ObjectInfo]:
        """Every object here and in the folders below.

        Args:
            must_show: an object that the caller has written. A listing without it is not believed as long as
                the object is there.
            most: stop after so many.
        """

        def listing() -> list[ObjectInfo]:
            found = self.list_once(most)
            if must_show is not None and all(info.key != must_show for info in found):
                self._doubt(self.head(must_show) is not None, f"does not show {must_show}, which is there")
            return found

        return self._believed(listing)

    def folders(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        return self._believed(self.list_folders_once)

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of an object, or None if there is no such object."""
        try:
            return self.repeat(lambda: self.head_once(key))
        except MissingObjectError:
            return None
        except (AccessError, RemoteError):
            with suppress(MissingObjectError):
                self.open_once(key)  # the answer to HEAD has no words; the one to GET has
            raise

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
        refusal: SaecacheError | None = None

        def once() -> T:
            nonlocal refusal
            result = self.open_once(key)
            if (size := result.meta["size"]) > max_bytes:
                raise CorruptCacheError(f"{self.url}/{key}: {size} bytes, expected at most {max_bytes}")
            content = b"".join(self.chunks_once(key, result))
            try:
                return parse(content)
            except (CorruptCacheError, UsageError) as error:
                refusal = error
                raise WrongBytesError(str(error)) from None

        try:
            return self.repeat(once)
        except WrongBytesError as error:
            raise refusal or error from None

    def download(
        self,
        key: str,
        path: Path,
        *,
        size: int,
        sha256: str,
        on_bytes: OnBytes = ignore_bytes,
        durable: bool = True,
    ) -> None:
        """Write an object to ``path``: under a temporary name, checked, synced, then renamed.

        With ``durable=False`` straight to ``path`` and unsynced, for a caller who does the rest himself.

        Raises:
            CorruptCacheError: its size or sha256 differ from the expected ones each time it is read.
            OSError: of the local disk.
        """

        def once() -> None:
            file.seek(0)
            if os.fstat(file.fileno()).st_size:  # ext4 writes all of a file on close that was ever truncated
                file.truncate()
            writer = BlockWriter(file, min(size, WRITE_BYTES))
            got = self.stream_once(key, size, writer.write, on_bytes)
            try:
                if got != sha256:
                    raise WrongBytesError(f"{self.url}/{key} is damaged: sha256 is {got}, expected {sha256}")
                writer.flush()
            except BaseException:
                on_bytes(-size)
                raise

        # "wb" would truncate: see once()
        with replacing(path) if durable else path.open("ab", buffering=0) as file:
            self.repeat(once)

    def checksum(self, key: str, *, size: int) -> str:
        """Read an object of ``size`` bytes and return its sha256, keeping nothing.

        Raises:
            CorruptCacheError: it has another size.
        """
        return self.repeat(lambda: self.stream_once(key, size))

    def find_equal(self, key: str, *, size: int, sha256: str, read: bool = False) -> ObjectInfo | None:
        """The object ``key`` if it has this size and sha256.

        The sha256 that was recorded beside it is believed, unless ``read``; where there is none, it is read.
        """
        info = self.head(key)
        if info is None or info.size != size:
            return None
        found = info.sha256
        if found is None or (read and found == sha256):
            found = self.checksum(key, size=size)
        return info if found == sha256 else None

    def put(self, key: str, content: bytes, *, create: bool = False) -> bool:
        """Write a small object and read it back; with ``create`` only if there is none.

        Returns:
            Whether it was written. When an answer was lost, an object that we did create may count as
            another's: compare its content.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        ours = False  # an object that we created may be written again, when it came out wrong

        def once() -> bool:
            nonlocal ours
            try:
                self.put_once(
                    key, content, sha256, create=create and not ours, passing=_IS_THERE + _UNSUPPORTED
                )
            except _IS_THERE:
                if self.head(key) is None:  # S3 may refuse both of two who write at once (409)
                    raise RemoteError(f"writing {key} at {self.url}: somebody else writes it too") from None
                return False
            except _UNSUPPORTED:  # a server without conditional writes: nearly as good
                return False if self.head(key) is not None else self.put(key, content)
            ours = True
            if self.get(key, max(len(content), 1 << 16)) != content:
                raise WrongBytesError(
                    f"writing {key} at {self.url}: it reads differently from what was written"
                )
            return True

        return self.repeat(once)

    def upload(
        self, path: Path, key: str, *, size: int, sha256: str, on_bytes: OnBytes = ignore_bytes
    ) -> ObjectInfo:
        """Write the local file ``path`` to ``key`` whole or not at all, and make sure that its bytes arrived.

        The bytes sent are compared with ``sha256`` before the object comes to be. What arrived is compared by
        its ETag where that is S3's md5, and else by reading it back.

        Raises:
            CorruptCacheError: the file has another size or sha256, or other bytes arrive each time.
        """

        def once() -> ObjectInfo:
            parts = HashedParts(path, size, sha256, on_bytes)
            try:
                if size <= part_size(size):
                    done = self.put_once(key, b"".join(parts), sha256)
                else:
                    done = self.put_parts_once(key, iter(parts), sha256, part_size(size))
                etag = (done["e_tag"] or "").strip('"')
                if etag != parts.etag() and (got := self.checksum(key, size=size)) != sha256:
                    raise WrongBytesError(
                        f"{self.url}/{key}: other bytes arrived than were sent (sha256 {got}, not {sha256})"
                    )
                info = self.head(key)
                if info is None or info.size != size:
                    raise RemoteError(f"writing {key} at {self.url}: it is not there after it was written")
            except BaseException as error:
                if isinstance(error, WrongBytesError):
                    self.delete([key])  # its recorded sha256 is that of the right bytes
                on_bytes(-parts.sent)
                raise
            return info

        return self.repeat(once)

    def flush(self) -> None:
        """Make visible what was uploaded; places that collect uploads have something to do here."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are not missed."""
        for first in range(0, len(keys), _REMOVED_AT_ONCE):
            some = keys[first : first + _REMOVED_AT_ONCE]
            self.repeat(lambda some=some: self.delete_once(some))  # type: ignore[misc]

    def _believed(self, listing: Callable[[], Found]) -> Found:
        """What ``listing`` finds. Where it finds nothing the server has to show that it answers listings."""

        def check_answer() -> None:
            got = foreign_listing(self.bucket, self.prefix)
            self._doubt(got is not None, f"answers with {got} instead of a listing")

        def once() -> Found:
            try:
                found = listing()
            except UnreadableAnswerError:
                check_answer()
                raise
            if any(found):
                return found
            check_answer()
            if self.bucket.stores_attributes:
                absent = f".absent-{uuid4().hex}"
                self._doubt(self.head(absent) is not None, f"claims to have {absent}, which nobody wrote")
            return listing()

        return self.repeat(once)

    def _doubt(self, wrong: bool, why: str) -> None:
        if wrong:
            raise RemoteError(
                f"listing {self.url}: {self.bucket.server} {why}; its listing is not believed. Check the "
                "endpoint, and what is between here and there"
            )
