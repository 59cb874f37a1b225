"""From a folder to object storage: what is missing or different moves, the manifest comes last.

While a push is under way the place holds ``.unfinished.json``, the manifest under another name (see
claims.py). It lets a second push of the same cache join, and keeps pushes of other caches out. The README of
the store says what happens when two commands meet.
"""

from functools import partial
from pathlib import Path

from ...common.errors import UsageError
from .cache_objects import HARVEST_CLAIM, CacheObject, read_local
from .claims import CLAIMS, ELSEWHERE, claim_for_cache, is_finished, read_claim, release_leftover
from .inventory import Inventory
from .places.by_url import open_remote_folder
from .places.failures import MissingObjectError
from .places.retries import Patience
from .transfer import Traffic, Transfer


class Push(Transfer):
    """One push.

    Args:
        path: a finished cache.
        url: where it goes: a place of its own below the team's prefix.
        traffic: concurrency, bandwidth, progress.
        verify: read what is already there, instead of trusting the sha256 recorded beside each object.

    ``plan`` and ``run`` raise:
        UsageError: another cache, another push or something else is there, or there is no access.
        CorruptCacheError: a local file is damaged; it was not uploaded.
        RemoteError: the store kept failing; the same push continues.
        RemoteChangedError: somebody removed or replaced the cache meanwhile.
    """

    counts_root = True

    def __init__(
        self,
        path: Path,
        url: str,
        traffic: Traffic | None = None,
        *,
        verify: bool = False,
        patience: Patience | None = None,
    ) -> None:
        root, objects = read_local(path)
        super().__init__(open_remote_folder(url, patience, create=True), path, root, objects, traffic, verify)
        self._claim = claim_for_cache(self.folder, "push", root)
        self._inventory = Inventory(self.folder, verify=verify)

    def _inspect(self) -> bool:
        finished = self._is_finished()
        self._inventory.refresh()
        if (foreign := self.root.foreign(self._inventory.listed)) is not None:
            raise UsageError(
                f"{self.folder.url} holds other things ({foreign}): a cache needs a place of its own, "
                f"for example {self.folder.url}/{self.path.resolve().name}"
            )
        return finished

    def _is_finished(self) -> bool:
        if is_finished(self.folder, self.root):
            return True
        self._claim.check()
        if read_claim(self.folder, HARVEST_CLAIM) is not None and not is_finished(self.folder, self.root):
            raise UsageError(f"{self.folder.url} is taken by a harvest; {ELSEWHERE}")
        return False

    def _move(self, missing: list[CacheObject]) -> None:
        leftover = CLAIMS
        if not self._finished or missing:
            self._bring(missing)
            leftover = (HARVEST_CLAIM,)  # its own claim is gone
        if not self._inventory.listed.keys().isdisjoint(leftover):
            release_leftover(self.folder, self.root)

    def _bring(self, missing: list[CacheObject]) -> None:
        try:
            self._take_claim()
            self.traffic.run(partial(self._upload, wanted) for wanted in missing)
            self._claim.commit(self.root, self._objects, self._inventory)
        except MissingObjectError:
            raise self._claim.changed("what was written is gone again") from None
        if not self._finished:
            self.traffic.moved(len(self.root.content))

    def _take_claim(self) -> None:
        try:
            self._claim.take()
        except MissingObjectError:  # gone before it was read back: another push of this cache has finished
            if not self._is_finished():
                raise

    def _upload(self, wanted: CacheObject) -> None:
        self._inventory.upload(self.path / wanted.key, wanted, self.traffic.moved)

    def _is_there(self, wanted: CacheObject) -> bool:
        return self._inventory.has(wanted)
