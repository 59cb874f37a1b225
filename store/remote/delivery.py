"""A cache that is finished straight into object storage: each shard is uploaded, then removed here.

Until the manifest is there, the last of all, the location holds ``.harvest.json``: it says whose objects
these are, lets the same harvest go on, and keeps everything else out.
"""

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ...common.errors import SaecacheError, UsageError
from ..manifest import FileInfo
from ..untrusted import MAX_METADATA_BYTES, parse_json
from .remote_folder import ObjectInfo
from .cache_objects import HARVEST_CLAIM as CLAIM
from .cache_objects import PROVENANCE, ROOT, Root, find_root, find_unfinished
from .failures import MissingObjectError, RemoteChangedError
from .remote_folder import RemoteFolder, open_remote_folder
from .retries import Patience

UPLOADS_AT_ONCE = 4
WAITING_AT_MOST = 8  # shards that are finished and not uploaded yet: they take room here


class BucketDelivery:
    """Uploads the files of the cache that is being written in ``folder`` to ``url``."""

    def __init__(self, folder: Path, url: str, patience: Patience | None = None) -> None:
        self.folder = folder
        self.location: RemoteFolder = open_remote_folder(url, patience)
        self.url = self.location.url
        self._there: dict[str, ObjectInfo] = {}  # what former runs brought
        self._brought: set[str] = set()  # by this run
        self._claim = b""
        self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, "saecache-upload")
        self._under_way: deque[Future[None]] = deque()

    def claim(self, fingerprint: str) -> None:
        """Take the location for the cache with this fingerprint, or go on with it.

        Raises:
            UsageError: another cache, another harvest or something else is there, or there is no access.
        """
        if find_root(self.location) is not None or find_unfinished(self.location) is not None:
            raise UsageError(f"{self.url} holds another cache, or one that is being pushed; {_ELSEWHERE}")
        there = {info.key: info for info in self.location.objects()}
        if there and CLAIM not in there:
            raise UsageError(f"{self.url} holds other things ({min(there)}); {_ELSEWHERE}")
        self._claim = json.dumps({"fingerprint": fingerprint}).encode()
        if not self.location.put(CLAIM, self._claim, create=True) and self._claimed_by() != fingerprint:
            raise UsageError(
                f"{self.url} is taken by a harvest of another cache (fingerprint {self._claimed_by()[:12]}, "
                f"not {fingerprint[:12]}); {_ELSEWHERE}"
            )
        self._there = there

    def has(self, file: FileInfo, *, keep: bool) -> bool:
        path = self.folder / file.path
        here = path.is_file() and path.stat().st_size == file.size
        return here or (not keep and self._is_there(file))

    def take(self, file: FileInfo, *, keep: bool) -> None:
        if (self.folder / file.path).is_file():  # else a former run has brought it
            self._under_way.append(self._pool.submit(self._bring, file, keep))
        while len(self._under_way) > WAITING_AT_MOST or (self._under_way and self._under_way[0].done()):
            self._under_way.popleft().result()

    def finish(self) -> None:
        """Wait for the shards, then metadata and provenance, and last the manifest.

        Raises:
            RemoteChangedError: somebody removed or replaced objects meanwhile; the same harvest mends it.
        """
        content = (self.folder / ROOT).read_bytes()
        root = Root.parse(content, str(self.folder / ROOT))
        for file in root.manifest.files:  # a killed run may have left some that it did not bring
            if file.path not in self._brought:
                self.take(file, keep=True)
        while self._under_way:
            self._under_way.popleft().result()
        for key in [*root.metadata, PROVENANCE]:
            self.location.put(key, (self.folder / key).read_bytes())
        self._check_all_there(root)
        if self.location.put(ROOT, content, create=True):
            if self.location.head(CLAIM) is None:
                self.location.delete([ROOT])  # whoever removed the claim removes what was written
                raise self._changed(CLAIM)
        elif (other := find_root(self.location)) is None or other.manifest != root.manifest:
            raise RemoteChangedError(f"{self.url}: another cache was put there meanwhile; {_ELSEWHERE}")
        self.location.delete([CLAIM])

    def close(self) -> None:
        """Stop; uploads that are under way end first."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def give_up(self) -> None:
        """Nothing was saved here, so the location is free again for anybody."""
        with suppress(SaecacheError):
            self.location.delete([CLAIM])

    def _bring(self, file: FileInfo, keep: bool) -> None:
        path = self.folder / file.path
        if file.path not in self._brought and not self._is_there(file):
            self.location.upload(path, file.path, size=file.size, sha256=file.sha256)
        self._brought.add(file.path)
        if not keep:
            path.unlink()

    def _is_there(self, file: FileInfo) -> bool:
        """Whether a former run brought this file."""
        listed = self._there.get(file.path)
        if listed is None or listed.size != file.size:
            return False
        info = self.location.head(file.path)
        recorded = info.sha256 if info else None
        if info is not None and recorded is None:  # this kind of store keeps no checksums
            recorded = self.location.checksum(file.path, size=info.size)
        return recorded == file.sha256

    def _check_all_there(self, root: Root) -> None:
        there = {info.key: info.size for info in self.location.objects()}
        for file in root.manifest.files:
            if there.get(file.path) != file.size:
                raise self._changed(file.path)

    def _changed(self, key: str) -> RemoteChangedError:
        (self.folder / ROOT).unlink()  # the next run then looks for every shard, and writes what is missing
        self.location.put(CLAIM, self._claim, create=True)  # what came after a removal is still ours
        return RemoteChangedError(
            f"{self.url}/{key} was removed or replaced during the harvest: run it again"
        )

    def _claimed_by(self) -> str:
        try:
            claim = parse_json(self.location.get(CLAIM, MAX_METADATA_BYTES))
        except (MissingObjectError, ValueError):
            return "unknown"
        return str(claim.get("fingerprint")) if isinstance(claim, dict) else "unknown"


_ELSEWHERE = "choose another URL, or remove what is there first (saecache cache rm URL)"
