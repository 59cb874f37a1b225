"""A place in a repository of the Hub, with the methods of a place in a bucket."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..bucket import Bucket
from ..failures import MissingObjectError, RemoteError, WrongBytesError
from ..file_blocks import HashedParts
from ..object_requests import ObjectInfo, OnBytes, ignore_bytes
from ..remote_folder import RemoteFolder
from ..retries import Patience
from ..urls import ObjectUrl
from .address import hub_endpoint, hub_token, parse_hub_path
from .api import SAMPLE_BYTES, Addition, HubApi, HubFile
from .requests import HubRequests, MissingRepositoryError

if TYPE_CHECKING:
    from obstore import GetResult

Found = TypeVar("Found", bound=Iterable[object])
COMMIT_FILES = 64  # files of one commit; the Hub allows some hundred commits an hour
COMMIT_BYTES = 32 << 20  # of small files, whose content is in the commit itself
_OWN_FILES = {".gitattributes", ".gitignore", "README.md"}  # of the repository itself, at its top


def open_hub_folder(url: ObjectUrl, patience: Patience, *, create: bool) -> "HubFolder":
    """The place an ``hf://`` URL names; nothing is asked of the Hub yet. See :func:`open_remote_folder`."""
    repository, _ = parse_hub_path(url.bucket)
    bucket = Bucket(url, patience)
    requests = HubRequests(bucket, str(url), hub_endpoint(), hub_token())
    return HubFolder(bucket, str(url), url.prefix, Writing(HubApi(requests, repository), create))


class Writing:
    """What the folders of one repository share: whether it exists, and files that wait for a commit.

    Args:
        create: a repository that does not exist counts as an empty one; the first write makes it, private.
    """

    def __init__(self, api: HubApi, create: bool) -> None:
        self.api = api
        self._create = create
        self._exists: bool | None = None
        self._waiting: dict[str, Addition] = {}
        self._lock = threading.RLock()

    def exists(self) -> bool:
        """Whether there is a repository; asked of the Hub once.

        Raises:
            AccessError: there is none and it may not be made, no such revision, a wrong token.
        """
        with self._lock:
            if self._exists is None:
                try:
                    self.api.head()
                except MissingRepositoryError:
                    if not self._create:
                        raise
                    self._exists = False
                else:
                    self._exists = True
            return self._exists

    def make(self) -> None:
        """Make the repository if there is none."""
        with self._lock:
            if not self.exists():
                self.api.create()
                self._exists = True

    def add(self, file: Addition, repeat: Callable[[Callable[[], None]], None]) -> None:
        """Commit a file with others, later; or all that wait, where they are enough."""
        with self._lock:
            self._waiting[file.path] = file
            inside = sum(len(waiting.content or b"") for waiting in self._waiting.values())
            if len(self._waiting) >= COMMIT_FILES or inside >= COMMIT_BYTES:
                self.flush(repeat)

    def flush(self, repeat: Callable[[Callable[[], None]], None]) -> None:
        """Commit what waits."""
        with self._lock:
            if files := list(self._waiting.values()):
                title = f"saecache: {files[0].path}" if len(files) == 1 else f"saecache: {len(files)} files"
                repeat(lambda: self.api.commit(title, files))
                self._waiting.clear()


class HubFolder(RemoteFolder):
    """See :class:`RemoteFolder`. :meth:`upload` commits later: other requests commit first what waits."""

    def __init__(self, bucket: Bucket, url: str, prefix: str, writing: Writing) -> None:
        super().__init__(bucket, url, prefix)
        self.writing = writing
        self._api = writing.api

    def child(self, name: str) -> "HubFolder":
        prefix = f"{self.prefix}/{name}".lstrip("/")
        return HubFolder(self.bucket, f"{self.url}/{name}", prefix, self.writing)

    def flush(self) -> None:
        self.writing.flush(self.repeat)

    def open_once(self, key: str) -> "GetResult":
        self._check_exists(key)
        return super().open_once(key)

    def read_range_once(self, key: str, start: int, length: int) -> bytes:
        self._check_exists(key)
        return super().read_range_once(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        self.flush()
        try:
            return self.repeat(lambda: self.head_once(key))
        except MissingObjectError:
            return None

    def head_once(self, key: str) -> ObjectInfo:
        self._check_exists(key)
        name = self.name_of(key)
        if (found := self._api.find([name]).get(name)) is None:
            raise MissingObjectError(f"looking at {key} at {self.url}: there is no such object")
        return self._described(found)

    def list_once(self, most: int | None) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        if self.writing.exists():
            for entry in self._api.tree(self.prefix, recursive=True):
                if isinstance(entry, HubFile) and not self._is_own(entry.path):
                    found.append(self._described(entry))
                if len(found) == most:
                    break
        return found

    def list_folders_once(self) -> tuple[list[str], list[ObjectInfo]]:
        entries = list(self._api.tree(self.prefix, recursive=False)) if self.writing.exists() else []
        folders = sorted(entry.rsplit("/", 1)[-1] for entry in entries if isinstance(entry, str))
        files = [entry for entry in entries if isinstance(entry, HubFile) and not self._is_own(entry.path)]
        return folders, [self._described(file) for file in files]

    def put(self, key: str, content: bytes, *, create: bool = False) -> bool:
        sha256 = hashlib.sha256(content).hexdigest()
        name, ours = self.name_of(key), False

        def once() -> bool:
            nonlocal ours
            self.writing.make()
            parent = ""
            if create and not ours:
                parent = self._api.head()
                if self._api.find([name]):
                    return False
            large = self._api.is_large(name, len(content), content)
            if large:
                self._api.upload(name, [content], len(content), sha256)
            file = Addition(name, len(content), sha256, None if large else content)
            self._api.commit(f"saecache: {name}", [file], parent=parent)
            ours = True
            if self.get(key, max(len(content), 1 << 16)) != content:
                raise WrongBytesError(
                    f"writing {key} at {self.url}: it reads differently from what was written"
                )
            return True

        self.flush()
        return self.repeat(once)

    def upload(
        self, path: Path, key: str, *, size: int, sha256: str, on_bytes: OnBytes = ignore_bytes
    ) -> ObjectInfo:
        """Send a file whole, its bytes compared with ``sha256`` here and by the Hub; a later commit names it.

        Raises:
            CorruptCacheError: the file has another size or sha256.
        """
        name = self.name_of(key)

        def once() -> Addition:
            self.writing.make()
            parts = HashedParts(path, size, sha256, on_bytes)
            try:
                if self._api.is_large(name, size, _first_bytes(path)):
                    self._api.upload(name, parts, size, sha256)
                    content = None
                else:
                    content = b"".join(parts)
            except BaseException:
                on_bytes(-parts.sent)
                raise
            return Addition(name, size, sha256, content)

        file = self.repeat(once)
        self.writing.add(file, self.repeat)
        oid = "" if file.content is None else _git_oid(file.content)
        return self._described(HubFile(name, size, oid, sha256 if file.content is None else None))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects by one commit; those that are not there are not missed. Their history stays."""

        def once() -> None:
            if self.writing.exists():
                parent = self._api.head()
                if there := sorted(self._api.find([self.name_of(key) for key in keys])):
                    self._api.commit(f"saecache: remove {len(there)} files", deletions=there, parent=parent)

        self.flush()
        self.repeat(once)

    def _believed(self, listing: Callable[[], Found]) -> Found:
        self.flush()
        return self.repeat(listing)

    def _doubt(self, wrong: bool, why: str) -> None:
        if wrong:
            raise RemoteError(f"listing {self.url}: the Hub {why}; run again, it continues")

    def _check_exists(self, key: str) -> None:
        if not self.writing.exists():
            raise MissingObjectError(f"reading {key} at {self.url}: there is no such repository yet")

    def _is_own(self, path: str) -> bool:
        return not self.prefix and path in _OWN_FILES

    def _described(self, file: HubFile) -> ObjectInfo:
        key = file.path.removeprefix(self.prefix).lstrip("/")
        return ObjectInfo(key, file.size, file.modified, file.sha256 or file.oid, file.sha256)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SAMPLE_BYTES)
    except OSError:
        return b""  # HashedParts says it


def _git_oid(content: bytes) -> str:
    """Git's name for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
