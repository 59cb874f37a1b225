"""A cache that is finished straight into object storage: each shard is uploaded, then removed here.

Until the manifest is there, the place holds ``.harvest.json`` (see claims.py): it says whose objects these
are, lets the same harvest go on, and keeps everything else out.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ...common.errors import SaecacheError, UsageError
from ...distributed.group import Group
from ..manifest import FileInfo
from .bucket_pieces import BucketPieces
from .cache_objects import HARVEST_CLAIM, ROOT, UNFINISHED, CacheObject, Root, find_root, small_objects
from .claims import ELSEWHERE, Claim, HarvestedCache, claim_for_harvest, release_leftover
from .inventory import Inventory
from .places.by_url import open_remote_folder
from .places.failures import AccessError, RemoteChangedError
from .places.retries import Patience

UPLOADS_AT_ONCE = 4
WAITING_AT_MOST = 8  # shards that are finished and not uploaded yet: they take room here


class BucketDelivery:
    """Uploads the files of the cache that is being written in ``folder`` to ``url``."""

    def __init__(self, folder: Path, url: str, patience: Patience | None = None) -> None:
        self.folder = folder
        if url.startswith("hf://"):
            raise UsageError(
                f"a harvest cannot write to {url} while it runs: harvest into a folder or a bucket, and then "
                "'saecache cache push' it"
            )
        self._remote = open_remote_folder(url, patience)
        self.url = self._remote.url
        self._inventory = Inventory(self._remote)
        self._claim: Claim | None = None
        self._apart = False
        self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, "saecache-upload")
        self._under_way: deque[Future[None]] = deque()

    def finished(self) -> Root | None:
        """The finished cache at the URL, if there is one; what a killed harvest left there goes."""
        root = find_root(self._remote)
        if root is not None:
            with suppress(AccessError):  # who may only read has nothing to do here
                release_leftover(self._remote, root)
        return root

    def work_apart(self, folder: Path) -> BucketPieces:
        """Let ``folder`` be one that no other process sees; returns where the processes meet instead."""
        self.folder, self._apart = folder, True
        return self.pieces()

    def pieces(self) -> BucketPieces:
        """What a harvest keeps at the URL until it is finished, if its processes share no folder."""
        return BucketPieces(self._remote)

    def claim(self, fingerprint: str, conditions: str | None = None) -> None:
        """Claim the place for the cache with this fingerprint, or go on with it.

        Args:
            conditions: on what the last bits of its rows depend: a harvest under others is kept out.

        Raises:
            UsageError: another cache, another harvest or something else is there, or there is no access.
        """
        if find_root(self._remote) is not None or find_root(self._remote, UNFINISHED) is not None:
            raise UsageError(f"{self.url} holds another cache, or one that is being pushed; {ELSEWHERE}")
        self._inventory.refresh()
        there = self._inventory.listed
        if there and HARVEST_CLAIM not in there:
            raise UsageError(f"{self.url} holds other things ({min(there)}); {ELSEWHERE}")
        self._claim = claim_for_harvest(self._remote, HarvestedCache(fingerprint, conditions))
        self._claim.take()

    def has(self, file: FileInfo, *, keep: bool) -> bool:
        path = self.folder / file.path
        here = path.is_file() and path.stat().st_size == file.size
        there_is_enough = self._apart or not keep
        return here or (there_is_enough and self._inventory.has(CacheObject.of(file)))

    def take(self, file: FileInfo, *, keep: bool) -> None:
        self._take(CacheObject.of(file), keep)

    def bring_back(self, file: FileInfo) -> None:
        path = self.folder / file.path
        self._remote.download(file.path, path, size=file.size, sha256=file.sha256)

    def meet(self, group: Group) -> None:
        with group.together():
            self._settle()
        with group.together():
            self._inventory.refresh()

    def finish(self) -> None:
        """Wait for the shards, upload metadata and provenance, and last the manifest.

        Raises:
            RemoteChangedError: somebody removed or replaced objects meanwhile; the same harvest mends it.
        """
        assert self._claim is not None
        root = Root.parse((self.folder / ROOT).read_bytes(), str(self.folder / ROOT))
        objects = [*root.shards(), *small_objects(self.folder, root)]
        self._settle()  # first: what is under way is removed here when it is there
        for wanted in objects:  # a killed run may have left shards that it did not bring
            self._take(wanted, keep=True)
        self._settle()
        try:
            self._claim.commit(root, objects, self._inventory)
        except RemoteChangedError:
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

    def _take(self, wanted: CacheObject, keep: bool) -> None:
        if (self.folder / wanted.key).is_file():  # else a former run has brought it
            self._under_way.append(self._pool.submit(self._bring, wanted, keep))
        self._settle(WAITING_AT_MOST)

    def _settle(self, most: int = 0) -> None:
        """Wait until at most so many uploads are under way; raises the error of one that failed."""
        while len(self._under_way) > most or (self._under_way and self._under_way[0].done()):
            self._under_way.popleft().result()

    def _bring(self, wanted: CacheObject, keep: bool) -> None:
        path = self.folder / wanted.key
        if not self._inventory.has(wanted):
            self._inventory.upload(path, wanted)
        if not keep:
            path.unlink()
