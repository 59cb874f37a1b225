"""Removing a cache from object storage: first nobody can open it any more, then its objects go."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...common.errors import CorruptCacheError, UsageError
from ..layout import TOP_FOLDERS
from .remote_folder import ObjectInfo
from .cache_objects import HARVEST_CLAIM, ROOT, UNFINISHED, Root, find_root, find_unfinished
from .failures import RemoteChangedError
from .remote_folder import RemoteFolder, open_remote_folder
from .retries import Patience

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

    The manifest becomes ``.unfinished.json`` and goes last: until then the place is known as a cache that is
    not whole, which a push of the same cache would continue.

    Raises:
        UsageError: there is no cache, whole or not.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.location: RemoteFolder = open_remote_folder(url, patience)
        self.root: Root | None = None  # where there is none, the names of the folders tell what is a cache's
        self.state = "unreadable"
        try:
            complete = find_root(self.location)
            self.root = complete or find_unfinished(self.location)
            self.state = "unfinished" if complete is None else "complete"
        except CorruptCacheError:
            return
        if self.root is None and self.location.head(HARVEST_CLAIM) is None:
            raise UsageError(f"no cache at {self.location.url}: nothing is removed")

    def plan(self) -> RemovalPlan:
        """Count what would go."""
        there = list(self.location.objects())
        ours = self._ours(there)
        return RemovalPlan(
            url=self.location.url,
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
        marks = (UNFINISHED, HARVEST_CLAIM)
        for _ in range(_MAX_ROUNDS):
            if self.root is not None:
                self.location.put(UNFINISHED, self.root.content, create=True)
            self.location.delete([ROOT])
            there = [info.key for info in self._ours(self.location.objects())]
            self.location.delete([key for key in there if key not in marks])
            self.location.delete(marks)
            if not self._ours(self.location.objects()):
                return plan
        raise RemoteChangedError(
            f"{self.location.url}: somebody keeps writing there; stop their push and try again"
        )

    def _ours(self, there: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        if self.root is not None:
            return [info for info in there if info.key in self.root.keys]
        names = {*TOP_FOLDERS, ROOT, UNFINISHED, HARVEST_CLAIM}
        return [info for info in there if info.key.split("/")[0] in names]
