"""From a folder to object storage: what is missing or different moves, the manifest comes last.

While a push is under way the location holds ``.unfinished.json``, the manifest under another name. It says
what is coming, lets a second push of the same cache join, and keeps pushes of other caches out. A push that
was killed is continued by the same command. The README of the store says what happens when two commands meet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...common.errors import UsageError
from .remote_folder import ObjectInfo
from .cache_objects import (
    PROVENANCE,
    ROOT,
    UNFINISHED,
    CacheObject,
    LocalCache,
    Root,
    find_root,
    find_unfinished,
    foreign_key,
    read_local,
)
from .failures import MissingObjectError, RemoteChangedError
from .remote_folder import RemoteFolder, open_remote_folder
from .retries import Patience
from .transfer import Traffic


@dataclass(frozen=True)
class TransferResult:
    """What a push or pull did, or with ``dry_run`` would do."""

    cache: str
    url: str
    fingerprint: str
    objects: int
    bytes: int
    moved_objects: int
    moved_bytes: int
    dry_run: bool = False


class Push:
    """One push. ``plan`` looks at both sides, ``run`` moves what the plan found missing.

    Args:
        path: a finished cache.
        url: where it goes: a place of its own below the team's prefix.
        traffic: concurrency, bandwidth, progress.
        verify: read what is already there, instead of trusting the sha256 recorded beside each object.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        traffic: Traffic | None = None,
        *,
        verify: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self.local: LocalCache = read_local(path)
        self.location: RemoteFolder = open_remote_folder(url, patience)
        self.traffic = traffic or Traffic()
        self.verify = verify
        self._etags: dict[str, str | None] = {}
        self._missing: list[CacheObject] | None = None
        self._finished = self._claim_is_left = False

    def plan(self) -> TransferResult:
        """Compare both sides.

        Raises:
            UsageError: another cache, another push or something else is there, or there is no access.
        """
        self._finished = self._check_place()
        there = {info.key: info for info in self._listing()}
        self._claim_is_left = UNFINISHED in there
        missing: list[CacheObject] = []

        def compare(wanted: CacheObject) -> None:
            if not self._is_there(wanted, there.get(wanted.key)):
                missing.append(wanted)

        self.traffic.run(partial(compare, wanted) for wanted in self.local.objects)
        self._missing = sorted(missing, key=lambda found: (-found.size, found.key))
        return self._result(dry_run=True)

    def run(self) -> TransferResult:
        """Move what is missing.

        Raises:
            CorruptCacheError: a local file is damaged; it was not uploaded.
            RemoteError: the store kept failing; the same push continues.
            RemoteChangedError: somebody removed or replaced the cache meanwhile.
        """
        if self._missing is None:
            self.plan()
        assert self._missing is not None
        if self._finished and not self._missing:
            if self._claim_is_left:  # by a push that was killed at its very end
                self.location.delete([UNFINISHED])
            return self._result(dry_run=False)
        try:
            self._claim()
            self.traffic.run(partial(self._upload, wanted) for wanted in self._missing)
            self._finish()
        except MissingObjectError:
            raise self._changed("what was written is gone again") from None
        return self._result(dry_run=False)

    def _check_place(self) -> bool:
        """Whether this cache is there and finished; refuses a place that is taken."""
        root = find_root(self.location)
        if root is not None:
            if root.content != self.local.root.content:
                raise UsageError(f"{self.location.url} {_other(root, self.local.root)}; {_ELSEWHERE}")
            return True
        self._check_unfinished(find_unfinished(self.location))
        return False

    def _check_unfinished(self, root: Root | None) -> None:
        if root is not None and root.content != self.local.root.content:
            raise UsageError(
                f"{self.location.url} is taken by an unfinished push: it {_other(root, self.local.root)}; "
                + _ELSEWHERE
            )

    def _listing(self) -> Iterator[ObjectInfo]:
        for info in self.location.objects():
            if foreign_key([info.key], self.local.root):
                raise UsageError(
                    f"{self.location.url} holds other things ({info.key}): a cache needs a place of its own, "
                    f"for example {self.location.url}/{self.local.path.resolve().name}"
                )
            yield info

    def _is_there(self, wanted: CacheObject, listed: ObjectInfo | None) -> bool:
        if wanted.key == PROVENANCE:  # two caches that are otherwise the same differ here: the first stays
            return listed is not None
        if listed is None or listed.size != wanted.size:
            return False
        info = self.location.head(wanted.key)
        if info is None or info.size != wanted.size:
            return False
        sha256 = info.sha256
        if sha256 is None or (self.verify and sha256 == wanted.sha256):
            sha256 = self.location.checksum(wanted.key, size=wanted.size)
        self._etags[wanted.key] = info.etag
        return sha256 == wanted.sha256

    def _claim(self) -> None:
        """Say what is coming; whoever was first with another cache wins."""
        try:
            first = self.location.put(UNFINISHED, self.local.root.content, create=True)
        except MissingObjectError:  # gone before it was read back: another push of this cache has finished
            if not self._check_place():
                raise
            return
        if not first:
            self._check_unfinished(find_unfinished(self.location))

    def _upload(self, wanted: CacheObject) -> None:
        info = self.location.upload(
            self.local.path / wanted.key,
            wanted.key,
            size=wanted.size,
            sha256=wanted.sha256,
            on_bytes=self.traffic.moved,
        )
        self._etags[wanted.key] = info.etag

    def _finish(self) -> None:
        """The manifest, once everything is there; then the claim goes."""
        claimed = self._is_claimed()  # first: another push writes its manifest before its claim goes
        if not self._check_place() and not claimed:
            raise self._changed("somebody removed it")
        self._check_all_there()
        if self.location.put(ROOT, self.local.root.content, create=True):
            if not self._is_claimed():
                self._check_not_removed()
        elif not self._check_place():  # else another push of this cache was faster
            raise self._changed("somebody removed it")
        if not self._finished:
            self.traffic.moved(len(self.local.root.content))
        self.location.delete([UNFINISHED])

    def _is_claimed(self) -> bool:
        """Whether the place is still known to be for this cache."""
        root = find_unfinished(self.location)
        return root is not None and root.content == self.local.root.content

    def _check_not_removed(self) -> None:
        """The claim went while we wrote the manifest: another push of this cache finished, or it was removed.

        A removal takes the objects before the claim, and does not know of our manifest: we take it back.
        """
        try:
            self._check_all_there()
        except RemoteChangedError:
            self.location.delete([ROOT])
            raise

    def _check_all_there(self) -> None:
        there = {info.key: info for info in self.location.objects()}
        for wanted in self.local.objects:
            info = there.get(wanted.key)
            same = info is not None and info.etag == self._etags.get(wanted.key)
            if not same and not self._is_there(wanted, info):  # a push of the same cache may have been here
                raise self._changed(f"{wanted.key} is gone or another")

    def _changed(self, what: str) -> RemoteChangedError:
        return RemoteChangedError(
            f"{self.location.url} changed during the push: {what}; run the push again if it is still wanted"
        )

    def _result(self, *, dry_run: bool) -> TransferResult:
        assert self._missing is not None
        root = [] if self._finished else [len(self.local.root.content)]
        sizes = [*(found.size for found in self._missing), *root]
        return TransferResult(
            cache=str(self.local.path),
            url=self.location.url,
            fingerprint=self.local.root.manifest.fingerprint,
            objects=len(self.local.objects) + 1,
            bytes=self.local.total_bytes,
            moved_objects=len(sizes),
            moved_bytes=sum(sizes),
            dry_run=dry_run,
        )


_ELSEWHERE = "choose another URL, or remove that one first (saecache cache rm URL)"


def _other(there: Root, here: Root) -> str:
    if there.manifest.fingerprint != here.manifest.fingerprint:
        theirs, ours = there.manifest.fingerprint[:12], here.manifest.fingerprint[:12]
        return f"holds another cache (fingerprint {theirs}, not {ours})"
    return "holds a cache of the same fingerprint with other bytes (harvested by other software or hardware)"
