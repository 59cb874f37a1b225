"""Removing a cache from object storage: first nobody can open it any more, then its objects go."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...common.errors import CorruptCacheError, UsageError
from ..layout import TOP_FOLDERS
from .cache_objects import HARVEST_CLAIM, HARVEST_WORK, ROOT, UNFINISHED, Root, find_root
from .claims import CLAIMS, HarvestedCache, claim_for_cache, claim_for_harvest
from .places.by_url import open_remote_folder
from .places.failures import RemoteChangedError
from .places.object_requests import ObjectInfo
from .places.retries import Patience

_MAX_ROUNDS = 5


@dataclass(frozen=True)
class RemovalPlan:
    """What would go, and what stays because it is no part of the cache.

    ``state`` is ``complete``, ``unfinished`` (a push, a harvest or a removal stopped, or is under way) or
    ``unreadable``; the fingerprint is empty where no manifest tells it.
    """

    url: str
    fingerprint: str
    state: str
    objects: int
    bytes: int
    foreign: int


class Removal:
    """One removal. ``plan`` looks, ``run`` removes; the same again continues one that was stopped.

    The place is claimed first, then the manifest goes, then the objects, and the claim last: until then the
    place is known as a cache that is not whole, and the same push or harvest would continue it.

    Raises:
        UsageError: there is no cache, whole or not.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.folder = open_remote_folder(url, patience)
        self.root: Root | None = None  # where there is none, the names of the folders tell what is a cache's
        self.state = "unreadable"
        try:
            complete = find_root(self.folder)
            self.root = complete or find_root(self.folder, UNFINISHED)
            self.state = "unfinished" if complete is None else "complete"
        except CorruptCacheError:
            return
        if self.root is None and self.folder.head(HARVEST_CLAIM) is None:
            raise UsageError(f"no cache at {self.folder.url}: nothing is removed")

    def plan(self) -> RemovalPlan:
        """Count what would go."""
        there = self.folder.objects()
        ours = self._ours(there)
        return RemovalPlan(
            url=self.folder.url,
            fingerprint=self.root.manifest.fingerprint if self.root else "",
            state=self.state,
            objects=len(ours),
            bytes=sum(info.size for info in ours),
            foreign=len(there) - len(ours),
        )

    def run(self) -> RemovalPlan:
        """Remove it.

        Raises:
            RemoteChangedError: somebody writes there again and again.
        """
        plan = self.plan()
        claim = (
            claim_for_harvest(self.folder, HarvestedCache("unknown"), "removal")
            if self.root is None
            else claim_for_cache(self.folder, "removal", self.root)
        )
        for _ in range(_MAX_ROUNDS):
            self.folder.put(claim.key, claim.content, create=True)  # beside that of a push, it joins
            self.folder.delete([ROOT])
            there = self._ours(self.folder.objects(must_show=claim.key))
            self.folder.delete([info.key for info in there if info.key not in CLAIMS])
            if {info.key for info in self._ours(self.folder.objects(must_show=claim.key))} <= {*CLAIMS}:
                self.folder.delete(CLAIMS)
                if not self._ours(self.folder.objects()):
                    return plan
        raise RemoteChangedError(
            f"{self.folder.url}: somebody keeps writing there; stop their push and try again"
        )

    def _ours(self, there: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        if self.root is not None:
            return [info for info in there if self.root.owns(info.key)]
        names = {*TOP_FOLDERS, ROOT, *CLAIMS, HARVEST_WORK}
        return [info for info in there if info.key.split("/")[0] in names]
