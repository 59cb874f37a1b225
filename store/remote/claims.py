"""Claims: who writes or removes a cache at a place in a bucket. One protocol for push, harvest and removal.

    take      write a small object, only if there is none: whoever is first wins, the same cache joins
    ...       bring the cache's objects, or remove them
    commit    everything is there: write the manifest, only if there is none
    release   remove the claim, last of all

Somebody may remove the claim meanwhile. Then everything must be there all the same, brought by another
command for the same cache; otherwise the manifest that was just written is taken back. A cache whose manifest
is there is finished, and a claim beside it is left over from a command that was killed before ``release``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...common.errors import CorruptCacheError, UsageError
from ..manifest import MAX_MANIFEST_BYTES, Manifest
from ..untrusted_json import parse_json
from .bucket_pieces import remove_pieces
from .cache_objects import HARVEST_CLAIM, ROOT, UNFINISHED, CacheObject, Root, find_root
from .inventory import Inventory
from .places.failures import MissingObjectError, RemoteChangedError
from .places.remote_folder import RemoteFolder

CLAIMS: tuple[str, ...] = (UNFINISHED, HARVEST_CLAIM)
ELSEWHERE = "choose another URL, or remove that one first (saecache cache rm URL)"


@dataclass(frozen=True)
class HarvestedCache:
    """A cache that a harvest is making. ``conditions`` say on what its last bits depend; None: not known."""

    fingerprint: str
    conditions: str | None = None

    def is_same(self, other: "Manifest | HarvestedCache") -> bool:
        """Whether ``other`` will have the same bytes, as far as both say."""
        if isinstance(other, Manifest) or other.fingerprint != self.fingerprint:
            return False
        return None in (self.conditions, other.conditions) or self.conditions == other.conditions


@dataclass(frozen=True)
class Claim:
    """A claim on the place ``folder``. ``cache`` is what it is for: the manifest, or what is known before."""

    folder: RemoteFolder
    work: Literal["push", "harvest", "removal"]
    key: str
    content: bytes
    cache: Manifest | HarvestedCache

    def take(self) -> None:
        """Write the claim, or join another command for the same cache.

        Raises:
            UsageError: the place is taken by another cache.
            MissingObjectError: somebody removed the claim before it was read back.
        """
        if not self.folder.put(self.key, self.content, create=True):
            self.check()

    def check(self) -> bool:
        """Whether the place is claimed for this cache.

        Raises:
            UsageError: it is claimed for another one.
        """
        holder = read_claim(self.folder, self.key)
        if holder is not None and not self._is_for(holder):
            what = "an unfinished push" if self.key == UNFINISHED else "another harvest"
            raise UsageError(
                f"{self.folder.url} is taken by {what}: it {describe_other(holder, self.cache)}; {ELSEWHERE}"
            )
        return holder is not None

    def commit(self, root: Root, objects: Sequence[CacheObject], there: Inventory) -> None:
        """Write the manifest and release the claim.

        Args:
            objects: all other objects of the cache.
            there: what this command knows of the place.

        Raises:
            RemoteChangedError: somebody removed or replaced the cache meanwhile.
        """
        claimed = self._is_held()  # first: another push writes its manifest before its claim goes
        if not is_finished(self.folder, root) and not claimed:
            raise self.changed("the claim was removed or replaced")
        self._check_all_there(objects, there)
        if self.folder.put(ROOT, root.content, create=True):
            if not self._is_held():
                try:
                    self._check_all_there(objects, there)
                except RemoteChangedError:
                    self.folder.delete([ROOT])  # a removal does not know of it
                    raise
        elif not is_finished(self.folder, root):
            raise self.changed("the manifest was removed or replaced")
        self.release()

    def release(self) -> None:
        _remove_claim(self.folder, self.key)

    def changed(self, what: str) -> RemoteChangedError:
        return RemoteChangedError(
            f"{self.folder.url} changed during the {self.work}: {what}; run the {self.work} again if it is "
            "still wanted"
        )

    def _check_all_there(self, objects: Sequence[CacheObject], there: Inventory) -> None:
        there.refresh(must_show=self.key)
        for wanted in objects:
            if not there.has(wanted):
                raise self.changed(f"{wanted.key} was removed or replaced")

    def _is_held(self) -> bool:
        holder = read_claim(self.folder, self.key)
        return holder is not None and self._is_for(holder)

    def _is_for(self, holder: Manifest | HarvestedCache) -> bool:
        if isinstance(self.cache, HarvestedCache):
            return self.cache.is_same(holder)
        return holder == self.cache


def claim_for_cache(folder: RemoteFolder, work: Literal["push", "removal"], root: Root) -> Claim:
    """The claim of a command that knows the manifest."""
    return Claim(folder, work, UNFINISHED, root.content, root.manifest)


def claim_for_harvest(
    folder: RemoteFolder, cache: HarvestedCache, work: Literal["harvest", "removal"] = "harvest"
) -> Claim:
    """The claim of a command that knows only which cache it will be."""
    known = {"fingerprint": cache.fingerprint, "conditions": cache.conditions}
    content = json.dumps({name: value for name, value in known.items() if value is not None}).encode()
    return Claim(folder, work, HARVEST_CLAIM, content, cache)


def read_claim(folder: RemoteFolder, key: str) -> Manifest | HarvestedCache | None:
    """For which cache the claim ``key`` is; None where there is no claim."""
    if key == UNFINISHED:
        root = find_root(folder, key)
        return None if root is None else root.manifest
    where = f"{folder.url}/{key}"
    try:
        return folder.read(key, MAX_MANIFEST_BYTES, lambda content: _parse_harvest(content, where))
    except MissingObjectError:
        return None


def is_finished(folder: RemoteFolder, root: Root) -> bool:
    """Whether this cache is at ``folder`` and finished.

    Raises:
        UsageError: another cache is there.
    """
    there = find_root(folder)
    if there is not None and there.manifest != root.manifest:
        raise UsageError(f"{folder.url} {describe_other(there.manifest, root.manifest)}; {ELSEWHERE}")
    return there is not None


def release_leftover(folder: RemoteFolder, root: Root) -> None:
    """Remove claims for the finished cache ``root``, by commands that were killed at their very end."""
    for key in CLAIMS:
        holder = read_claim(folder, key)
        if holder is not None and holder.fingerprint == root.manifest.fingerprint:
            _remove_claim(folder, key)


def _remove_claim(folder: RemoteFolder, key: str) -> None:
    """Remove a claim, and before it what a harvest has kept beside it."""
    if key == HARVEST_CLAIM:
        remove_pieces(folder)
    folder.delete([key])


def describe_other(there: Manifest | HarvestedCache, here: Manifest | HarvestedCache) -> str:
    """How the cache at a place differs from ours."""
    if there.fingerprint != here.fingerprint:
        return f"holds another cache (fingerprint {there.fingerprint[:12]}, not {here.fingerprint[:12]})"
    if isinstance(there, HarvestedCache) and isinstance(here, HarvestedCache):
        return (
            "is of the same cache with other last bits, because it runs under other conditions "
            f"({there.conditions}; here: {here.conditions})"
        )
    return "holds a cache of the same fingerprint with other bytes (harvested by other software or hardware)"


def _parse_harvest(content: bytes, where: str) -> HarvestedCache:
    try:
        claim = parse_json(content)
    except ValueError:
        claim = None
    known = claim if isinstance(claim, dict) else {}
    fingerprint, conditions = known.get("fingerprint"), known.get("conditions")
    sound = isinstance(fingerprint, str) and bool(re.fullmatch(r"[0-9a-z]{1,64}", fingerprint))
    if conditions is not None:
        sound = sound and isinstance(conditions, str) and len(conditions) <= 1000 and conditions.isprintable()
    if not sound:
        raise CorruptCacheError(f"{where} is damaged: expected the claim of a harvest; {ELSEWHERE}")
    return HarvestedCache(str(fingerprint), conditions)
