"""A cache that is finished straight into object storage: each shard is uploaded, then removed here.

Until the manifest is there, the place holds ``.harvest.json`` (see claims.py): it says whose objects these
are, lets the same harvest go on, and keeps everything else out.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ...common.errors import SaecacheError, UsageError
from ..manifest import FileInfo
from .cache_objects import HARVEST_CLAIM, PROVENANCE, ROOT, Root, find_root, find_unfinished
from .claims import ELSEWHERE, Claim, claim_for_harvest, release_leftover
from .failures import AccessError, RemoteChangedError
from .object_requests import ObjectInfo
from .remote_folder import open_remote_folder
from .retries import Patience

UPLOADS_AT_ONCE = 4
WAITING_AT_MOST = 8  # shards that are finished and not uploaded yet: they take room here


class BucketDelivery:
    """Uploads the files of the cache that is being written in ``folder`` to ``url``."""

    def __init__(self, folder: Path, url: str, patience: Patience | None = None) -> None:
        self.folder = folder
        self._remote = open_remote_folder(url, patience)
        self.url = self._remote.url
        self._there: dict[str, ObjectInfo] = {}  # what former runs brought
        self._brought: set[str] = set()  # by this run
        self._claim: Claim | None = None
        self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, "saecache-upload")
        self._under_way: deque[Future[None]] = deque()

    def finished(self) -> Root | None:
        """The finished cache at the URL, if there is one; what a killed harvest left there goes."""
        root = find_root(self._remote)
        if root is not None:
            with suppress(AccessError):  # who may only read has nothing to do here
                release_leftover(self._remote, root)
        return root

    def claim(self, fingerprint: str) -> None:
        """Claim the place for the cache with this fingerprint, or go on with it.

        Raises:
            UsageError: another cache, another harvest or something else is there, or there is no access.
        """
        if find_root(self._remote) is not None or find_unfinished(self._remote) is not None:
            raise UsageError(f"{self.url} holds another cache, or one that is being pushed; {ELSEWHERE}")
        there = {info.key: info for info in self._remote.objects()}
        if there and HARVEST_CLAIM not in there:
            raise UsageError(f"{self.url} holds other things ({min(there)}); {ELSEWHERE}")
        self._claim = claim_for_harvest(self._remote, fingerprint)
        self._claim.take()
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
        assert self._claim is not None
        root = Root.parse((self.folder / ROOT).read_bytes(), str(self.folder / ROOT))
        for file in root.manifest.files:  # a killed run may have left some that it did not bring
            if file.path not in self._brought:
                self.take(file, keep=True)
        while self._under_way:
            self._under_way.popleft().result()
        for key in [*root.metadata, PROVENANCE]:
            self._remote.put(key, (self.folder / key).read_bytes())
        try:
            self._claim.commit(root, lambda: self._check_all_there(root))
        except RemoteChangedError:
            (self.folder / ROOT).unlink()  # so that the next run looks for every shard
            self._claim.take()  # what came after a removal is still ours
            raise

    def close(self) -> None:
        """Stop; uploads that are under way end first."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def give_up(self) -> None:
        """Nothing was saved here, so the location is free again for anybody."""
        if self._claim is not None:
            with suppress(SaecacheError):
                self._claim.release()

    def _bring(self, file: FileInfo, keep: bool) -> None:
        path = self.folder / file.path
        if file.path not in self._brought and not self._is_there(file):
            self._remote.upload(path, file.path, size=file.size, sha256=file.sha256)
        self._brought.add(file.path)
        if not keep:
            path.unlink()

    def _is_there(self, file: FileInfo) -> bool:
        """Whether a former run brought this file."""
        listed = self._there.get(file.path)
        if listed is None or listed.size != file.size:
            return False
        return self._remote.find_equal(file.path, size=file.size, sha256=file.sha256) is not None

    def _check_all_there(self, root: Root) -> None:
        assert self._claim is not None
        there = {info.key: info.size for info in self._remote.objects(must_show=HARVEST_CLAIM)}
        for file in root.manifest.files:
            if there.get(file.path) != file.size:
                raise self._claim.changed(f"{file.path} was removed or replaced")
