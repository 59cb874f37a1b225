"""What saecache asks of the Hub about one repository: its head, its files, commits, large files."""

import base64
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from threading import Lock
from typing import Any, TypeGuard
from urllib.parse import quote, urlencode

from .....common.errors import CorruptCacheError, UsageError
from ..failures import MissingObjectError, RemoteError, UnreadableAnswerError, WrongBytesError
from .address import HubRepository
from .requests import BranchMovedError, HubRequests, origin

PATHS_AT_ONCE = 500
MAX_LISTED = 1 << 20  # entries of a listing; the Hub itself advises at most 100,000 files
_FREE_PAGES, _LEAST_ENTRIES = 100, 10  # a page has 50 entries or more, but for the last
SAMPLE_BYTES = 512
_JSON = {"Content-Type": "application/json"}
_LFS = {"Content-Type": "application/vnd.git-lfs+json", "Accept": "application/vnd.git-lfs+json"}
_NUMBER = re.compile(r"[0-9]{1,18}")  # "²" is a digit too, and int() takes no number of any length
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEXT = re.compile(r"<([^>]+)>\s*;\s*rel=\"?next\"?")


@dataclass(frozen=True)
class HubFile:
    """A file of the repository. ``sha256`` is known of large ones; ``oid`` is git's name for its content."""

    path: str
    size: int
    oid: str
    sha256: str | None
    modified: datetime | None = None


@dataclass(frozen=True)
class Addition:
    """A file to be committed: its content, or where that was uploaded before, its sha256."""

    path: str
    size: int
    sha256: str
    content: bytes | None


class HubApi:
    """Requests about one repository, each made once; errors as of :meth:`HubRequests.ask`."""

    def __init__(self, requests: HubRequests, repository: HubRepository) -> None:
        self.requests = requests
        self.repository = repository
        self._api = f"{repository.api}/{{}}/{repository.quoted_revision}"
        self._uploading: dict[str, Lock] = {}  # by sha256
        self._unchecked: dict[str, str] = {}  # sha256 of what was sent -> where the Hub checks it

    def head(self) -> str:
        """The commit that the revision stands for now."""
        what = "looking at the repository"
        info = self.requests.ask("GET", self._api.format("revision"), what).parse(what)
        sha = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(sha, str) or not re.fullmatch("[0-9a-f]{40}", sha):
            raise UnreadableAnswerError(f"{what}: the answer names no commit")
        return sha

    def create(self) -> None:
        """Make the repository, private; one that exists stays as it is."""
        owner, name = self.repository.name.split("/")
        values = {"name": name, "organization": owner, "type": self.repository.kind, "private": True}
        body = json.dumps(values).encode()
        try:
            self.requests.ask("POST", "/api/repos/create", "making the repository", body=body, headers=_JSON)
        except BranchMovedError:  # the status for one that exists
            return

    def tree(self, folder: str, *, recursive: bool) -> Iterator[HubFile | str]:
        """The files in a folder, and the paths of its folders as texts; nothing where it does not exist.

        Args:
            recursive: those of the folders below too. Otherwise files come with their dates.
        """
        what = "listing"
        address = self._api.format("tree") + (f"/{quote(folder)}" if folder else "")
        query = urlencode({"recursive": str(recursive).lower(), "expand": str(not recursive).lower()})
        url: str | None = f"{self.requests.endpoint}{address}?{query}"
        asked: set[str] = set()
        listed = 0
        while url is not None:
            if url in asked:
                raise UnreadableAnswerError(f"{what}: the next page is said to be one that came before")
            if listed > MAX_LISTED or len(asked) > _FREE_PAGES + listed // _LEAST_ENTRIES:
                raise UnreadableAnswerError(
                    f"{what}: {listed:,} entries on {len(asked):,} pages, and no end of them"
                )
            asked.add(url)
            try:
                answer = self.requests.ask("GET", url, what)
            except MissingObjectError:
                return
            entries = answer.parse(what)
            if not isinstance(entries, list):
                raise UnreadableAnswerError(f"{what}: the answer is no listing")
            listed += len(entries)
            for entry in entries:
                if isinstance(entry, dict) and entry.get("type") == "directory":
                    if not _is_path(path := entry.get("path")):
                        raise UnreadableAnswerError(f"{what}: an entry of the listing is no folder")
                    yield path
                else:
                    yield _parse_file(entry, what)
            following = _NEXT.search(answer.headers.get("Link", ""))
            url = following[1] if following else None
            if url is not None and origin(url) != origin(self.requests.endpoint):
                raise UnreadableAnswerError(f"{what}: the next page is said to be at another server")

    def find(self, paths: Sequence[str]) -> dict[str, HubFile]:
        """Those of ``paths`` that are files."""
        what, found = "looking for objects", {}
        for first in range(0, len(paths), PATHS_AT_ONCE):
            body = urlencode({"paths": paths[first : first + PATHS_AT_ONCE], "expand": False}, doseq=True)
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self.requests.ask(
                "POST", self._api.format("paths-info"), what, body=body.encode(), headers=headers
            )
            entries = answer.parse(what)
            if not isinstance(entries, list):
                raise UnreadableAnswerError(f"{what}: the answer is no listing")
            for entry in entries:
                if isinstance(entry, dict) and entry.get("type") == "file":
                    file = _parse_file(entry, what)
                    found[file.path] = file
        return {path: found[path] for path in paths if path in found}

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether the Hub keeps such a file apart from the commits (LFS), which it decides itself.

        Raises:
            UsageError: the repository ignores files of this name.
        """
        what = f"asking how to send {path}"
        file = {"path": path, "size": size, "sample": base64.b64encode(sample[:SAMPLE_BYTES]).decode()}
        body = json.dumps({"files": [file]}).encode()
        answer = self.requests.ask("POST", self._api.format("preupload"), what, body=body, headers=_JSON)
        files = _field(answer.parse(what), "files", what)
        wanted = [found for found in files if isinstance(found, dict) and found.get("path") == path]
        if not wanted or wanted[0].get("uploadMode") not in ("lfs", "regular"):
            raise UnreadableAnswerError(f"{what}: the answer does not say it")
        if wanted[0].get("shouldIgnore"):
            raise UsageError(f"{path}: the .gitignore of the repository leaves this file out; change it")
        return bool(wanted[0]["uploadMode"] == "lfs" and size)

    def upload(self, path: str, parts: Iterable[bytes], size: int, sha256: str) -> None:
        """Send the content of a large file, unless the Hub has it; a commit has to name it later.

        Files of the same content go one after the other: the Hub says that it has a content before it has
        checked the bytes that arrived, and removes them if they are wrong.

        Args:
            parts: blocks of the content. They are read to their end in any case, so that they can check it.
        """
        with self._uploading.setdefault(sha256, Lock()):
            self._upload(f"writing {path}", parts, size, sha256)

    def _upload(self, what: str, parts: Iterable[bytes], size: int, sha256: str) -> None:
        payload = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": sha256, "size": size}],
            "hash_algo": "sha256",
            "ref": {"name": self.repository.revision},
        }
        address = f"{self.repository.files}.git/info/lfs/objects/batch"
        answer = self.requests.ask("POST", address, what, body=json.dumps(payload).encode(), headers=_LFS)
        objects = _field(answer.parse(what), "objects", what)
        if not objects or not isinstance(objects[0], dict) or "error" in objects[0]:
            raise RemoteError(f"{what}: the Hub refuses this file", may_pass=False)
        actions = objects[0].get("actions")
        if not actions:
            deque(parts, maxlen=0)  # it is there already
        else:
            upload = _action(actions, "upload", what)
            if "verify" in actions:
                self._unchecked[sha256] = _action(actions, "verify", what)["href"]
            header = {str(name): str(value) for name, value in (upload.get("header") or {}).items()}
            if "chunk_size" in header:
                self._send_parts(upload["href"], header, parts, size, sha256, what)
            else:
                self.requests.ask("PUT", upload["href"], what, body=iter(parts), length=size, headers=header)
        if sha256 in self._unchecked:
            body = json.dumps({"oid": sha256, "size": size}).encode()
            try:
                self.requests.ask("POST", self._unchecked[sha256], what, body=body, headers=_JSON)
            except RemoteError as error:
                if error.may_pass:
                    raise
                del self._unchecked[sha256]
                raise WrongBytesError(f"{what}: other bytes arrived than were sent") from None
            del self._unchecked[sha256]

    def _send_parts(
        self, href: str, header: dict[str, str], parts: Iterable[bytes], size: int, sha256: str, what: str
    ) -> None:
        """Send a file in the parts that the Hub named, and then say that it is complete."""
        addresses = [header[number] for number in sorted(filter(_NUMBER.fullmatch, header), key=int)]
        chunk = int(header["chunk_size"]) if _NUMBER.fullmatch(header["chunk_size"]) else 0
        if chunk <= 0 or len(addresses) != -(-size // chunk):
            raise UnreadableAnswerError(f"{what}: the parts that the Hub names do not fit the file")
        blocks, tags = _Blocks(iter(parts)), []
        for number, address in enumerate(addresses):
            length = min(chunk, size - number * chunk)
            answer = self.requests.ask("PUT", address, what, body=blocks.take(length), length=length)
            tags.append({"partNumber": number + 1, "etag": answer.headers.get("ETag", "")})
        body = json.dumps({"oid": sha256, "parts": tags}).encode()
        self.requests.ask("POST", href, what, body=body, headers=_LFS)

    def commit(
        self, title: str, additions: Iterable[Addition] = (), deletions: Iterable[str] = (), parent: str = ""
    ) -> None:
        """Commit files to the branch.

        Args:
            parent: the commit that the branch has to be at; any where empty.
        """
        header = {"summary": title, "description": "", **({"parentCommit": parent} if parent else {})}
        lines: list[dict[str, Any]] = [{"key": "header", "value": header}]
        for file in additions:
            if file.content is None:
                value = {"path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.size}
                lines.append({"key": "lfsFile", "value": value})
            else:
                content = base64.b64encode(file.content).decode()
                value = {"path": file.path, "content": content, "encoding": "base64"}
                lines.append({"key": "file", "value": value})
        lines += [{"key": "deletedFile", "value": {"path": path}} for path in deletions]
        body = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        self.requests.ask("POST", self._api.format("commit"), "committing", body=body, headers=headers)


class _Blocks:
    """Blocks of a file, cut where the parts of an upload end."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def take(self, length: int) -> Iterator[bytes]:
        while length:
            block = self._rest or next(self._blocks, b"")
            if not block:
                raise CorruptCacheError("a file became shorter while it was sent")
            self._rest, block = block[length:], block[:length]
            length -= len(block)
            if not length and not self._rest:  # the last block of all is checked before it is sent
                self._rest = next(self._blocks, b"")
            yield block


def _parse_file(entry: Any, what: str) -> HubFile:
    if not isinstance(entry, dict):
        raise UnreadableAnswerError(f"{what}: an entry of the listing is no file")
    path, size, oid, lfs = entry.get("path"), entry.get("size"), entry.get("oid"), entry.get("lfs")
    large = isinstance(lfs, dict)
    sha256 = str(lfs.get("oid", "")).removeprefix("sha256:") if isinstance(lfs, dict) else None
    if (
        not _is_path(path)
        or not isinstance(size, int)
        or size < 0
        or not isinstance(oid, str)
        or (large and not _SHA256.fullmatch(sha256 or ""))
    ):
        raise UnreadableAnswerError(f"{what}: an entry of the listing is no file")
    commit = entry.get("lastCommit")
    date = commit.get("date") if isinstance(commit, dict) else None
    try:
        modified = datetime.fromisoformat(date) if isinstance(date, str) else None
    except ValueError:
        modified = None
    return HubFile(path, size, oid, sha256, modified)


def _is_path(path: Any) -> TypeGuard[str]:
    """Whether it names something in the repository."""
    return isinstance(path, str) and not {"", ".", ".."} & set(path.split("/"))


def _field(value: Any, name: str, what: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UnreadableAnswerError(f"{what}: the answer has no {name}")
    return list(islice(found, PATHS_AT_ONCE))


def _action(actions: Any, name: str, what: str) -> dict[str, Any]:
    found = actions.get(name) if isinstance(actions, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("href"), str):
        raise UnreadableAnswerError(f"{what}: the answer does not say where to")
    if not isinstance(found.get("header") or {}, dict):
        raise UnreadableAnswerError(f"{what}: the answer has headers that are none")
    return found
