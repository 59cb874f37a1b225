"""Removing a cache from object storage: first nobody can open it any more, then its objects go."""

from dataclasses import dataclass

from ..errors import UsageError
from .contents import ROOT, UNFINISHED, Root, find_root, find_unfinished
from .failures import RemoteChangedError
from .location import Location, open_location
from .settings import Patience

_MAX_ROUNDS = 5


@dataclass(frozen=True)
class RemovalPlan:
    """What would go, and what stays because it is no part of the cache."""

    url: str
    fingerprint: str
    complete: bool
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
        self.location: Location = open_location(url, patience)
        complete = find_root(self.location)
        root = complete or find_unfinished(self.location)
        if root is None:
            raise UsageError(f"no cache at {self.location.url}: nothing is removed")
        self.complete = complete is not None
        self.root: Root = root

    def plan(self) -> RemovalPlan:
        """Count what would go."""
        keys = self.root.keys
        there = list(self.location.objects())
        ours = [info for info in there if info.key in keys]
        return RemovalPlan(
            url=self.location.url,
            fingerprint=self.root.manifest.fingerprint,
            complete=self.complete,
            objects=len(ours),
            bytes=sum(info.size for info in ours),
            foreign=len(there) - len(ours),
        )

    def run(self) -> RemovalPlan:
        """Remove it.

        Raises:
            RemoteChangedError: somebody writes there again and again.
        """
        plan, keys = self.plan(), self.root.keys
        for _ in range(_MAX_ROUNDS):
            self.location.put(UNFINISHED, self.root.content, create=True)
            self.location.delete([ROOT])
            there = [info.key for info in self.location.objects() if info.key in keys]
            self.location.delete([key for key in there if key != UNFINISHED])
            self.location.delete([UNFINISHED])
            if not any(info.key in keys for info in self.location.objects()):
                return plan
        raise RemoteChangedError(
            f"{self.location.url}: somebody keeps writing there; stop their push and try again"
        )
