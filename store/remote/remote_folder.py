"""A place in object storage: small objects, whole files, listings, all of them checked."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ...common.errors import CorruptCacheError, SaecacheError, UsageError
from . import download, upload
from .bucket import Bucket
from .failures import RemoteError, WrongBytesError
from .listing import list_folders, list_objects
from .object_requests import ObjectInfo, ObjectRequests, OnBytes
from .retries import Patience
from .urls import parse_url

T = TypeVar("T")


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


class RemoteFolder(ObjectRequests):
    """See :func:`open_remote_folder`; errors as of :class:`ObjectRequests`."""

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself, with its own credentials."""
        return open_remote_folder, (self.url, self.bucket.patience)

    def child(self, name: str) -> "RemoteFolder":
        """The place ``name`` below this one."""
        return RemoteFolder(self.bucket, f"{self.url}/{name}", f"{self.prefix}/{name}".lstrip("/"))

    def objects(
        self, prefix: str = "", *, must_show: str | None = None, most: int | None = None
    ) -> list[ObjectInfo]:
        """Every object below ``prefix`` (whole names: ``rows`` does not match ``rows2/x``).

        Args:
            must_show: an object that the caller has written. A listing without it is not believed as long as
                the object is there.
            most: stop after so many.
        """
        return list_objects(self, prefix, must_show=must_show, most=most)

    def folders(self) -> tuple[list[str], list[ObjectInfo]]:
        """(names of the folders, objects) directly here."""
        return list_folders(self)

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
            result = self.open(key)
            if (size := result.meta["size"]) > max_bytes:
                raise CorruptCacheError(f"{self.url}/{key}: {size} bytes, expected at most {max_bytes}")
            content = bytearray()
            for chunk in self.chunks(key, result):
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
        return download.checksum(self, key, size, on_bytes)

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
