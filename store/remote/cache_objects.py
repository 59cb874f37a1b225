"""The objects of a cache: every one with its size and sha256, on the disk and in a bucket.

Shards are in the manifest with both. The zarr.json of arrays and groups follow from the manifest: they are
compared with what follows from it. ``provenance/zarr.json`` is volatile and small, and nothing depends on it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from ...common.regular_files import read_regular
from ..manifest import MAX_MANIFEST_BYTES, FileInfo, Manifest
from ..manifest_file import check_files, load_manifest, parse_manifest
from ..provenance import PROVENANCE as PROVENANCE
from ..untrusted_json import MAX_METADATA_BYTES, check_depth, check_no_links, parse_json
from ..writing.publish import nested_metadata, root_metadata
from .places.failures import MissingObjectError, RemoteChangedError
from .places.remote_folder import RemoteFolder

ROOT = "zarr.json"
UNFINISHED = ".unfinished.json"
"""The root's zarr.json under another name: a cache that is being pushed or removed, or whose push stopped."""
HARVEST_CLAIM = ".harvest.json"
"""In the place of the root while a harvest writes there."""
HARVEST_WORK = ".harvest"
"""The folder of what such a harvest keeps there until it is finished, if its processes share no folder."""


@dataclass(frozen=True)
class CacheObject:
    """One object of a cache; its key is also its path inside the cache's folder."""

    key: str
    size: int
    sha256: str

    @classmethod
    def of(cls, file: FileInfo) -> "CacheObject":
        """A shard of the manifest."""
        return cls(file.path, file.size, file.sha256)


@dataclass(frozen=True)
class Root:
    """The bytes of a root zarr.json and the manifest in them, checked."""

    content: bytes
    manifest: Manifest

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Root":
        """
        Raises:
            UsageError: not a cache's, or a newer format.
            CorruptCacheError: the manifest contradicts itself, or the rest of the file contradicts it.
        """
        manifest = parse_manifest(content, where)
        if parse_json(content) != root_metadata(manifest):
            raise CorruptCacheError(f"{where}: the metadata are not those that follow from the manifest")
        return cls(content, manifest)

    def shards(self) -> list[CacheObject]:
        return [CacheObject.of(file) for file in self.manifest.files]

    @cached_property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Every nested zarr.json by key, and the value it must have."""
        return {f"{node}/{ROOT}": value for node, value in nested_metadata(self.manifest.layout).items()}

    @cached_property
    def keys(self) -> frozenset[str]:
        """Keys that the place of the cache may have; claims may be left over from a killed command."""
        shards = (file.path for file in self.manifest.files)
        return frozenset([ROOT, UNFINISHED, HARVEST_CLAIM, PROVENANCE, *self.metadata, *shards])

    def foreign(self, keys: Iterable[str]) -> str | None:
        """The first of ``keys`` that is no part of the cache."""
        return next((key for key in keys if not self.owns(key)), None)

    def owns(self, key: str) -> bool:
        """Whether the place of the cache may have this key."""
        return key in self.keys or key.startswith(f"{HARVEST_WORK}/")

    def checked(self, key: str, content: bytes, where: str) -> bytes:
        """The ``content`` of a zarr.json below the root's: of an array, a group, or the provenance.

        Raises:
            CorruptCacheError: it does not follow from the manifest, or it is not the metadata of a group.
        """
        try:
            value = parse_json(content)
            if key != PROVENANCE:
                sound, expected = value == self.metadata[key], "the metadata that follow from the manifest"
            else:
                check_depth(value, where)
                sound = value["node_type"] == "group" and isinstance(value.get("attributes", {}), dict)
                expected = "the metadata of a group"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptCacheError(f"{where} is not valid metadata in JSON: {error}") from None
        if not sound:
            raise CorruptCacheError(f"{where}: not {expected}")
        return content


def read_local(path: Path) -> tuple[Root, list[CacheObject]]:
    """Look at a finished cache on this machine: its manifest, and what there is of it beside the root.

    Compares the sizes of the shards and the content of the metadata with the manifest.

    Raises:
        UsageError, IncompleteCacheError: there is no finished cache at ``path``.
        CorruptCacheError: it is damaged.
    """
    manifest = load_manifest(path)
    root = Root.parse((path / ROOT).read_bytes(), str(path / ROOT))
    check_no_links(path, [*(file.path for file in manifest.files), PROVENANCE, *root.metadata])
    check_files(path, manifest)
    return root, [*root.shards(), *small_objects(path, root)]


def small_objects(path: Path, root: Root) -> list[CacheObject]:
    """Every zarr.json below the root's in the folder ``path``, the provenance included if there is any.

    Raises:
        CorruptCacheError: one of them is missing, or as :meth:`Root.checked`.
    """
    found = []
    for key in [*root.metadata, *([PROVENANCE] if (path / PROVENANCE).is_file() else [])]:
        try:
            content = root.checked(key, read_regular(path / key, MAX_METADATA_BYTES), str(path / key))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise CorruptCacheError(f"{path / key} cannot be read: {why}; the cache is not whole") from None
        found.append(CacheObject(key, len(content), hashlib.sha256(content).hexdigest()))
    return found


def read_root(location: RemoteFolder) -> Root:
    """The manifest of the finished cache at ``location``.

    Raises:
        UsageError: nothing there, something else, or a newer format.
        IncompleteCacheError: a cache whose push is under way, or stopped.
        CorruptCacheError: the manifest contradicts itself.
    """
    root = find_root(location)
    if root is not None:
        return root
    if find_root(location, UNFINISHED) is not None:
        raise IncompleteCacheError(
            f"the cache at {location.url} is not whole: somebody is pushing or removing it, or was "
            "interrupted; the same push continues it"
        )
    anything = location.objects(most=1)
    what = f"it has no {ROOT}; 'saecache cache ls' looks below it" if anything else "there is nothing there"
    raise UsageError(f"no cache at {location.url}: {what}")


def find_root(location: RemoteFolder, key: str = ROOT) -> Root | None:
    """The finished cache at ``location``, or None; with ``UNFINISHED`` the one that is pushed or removed.

    Raises:
        UsageError, CorruptCacheError: as :meth:`Root.parse`.
    """
    where = f"{location.url}/{key}"
    try:
        return location.read(key, MAX_MANIFEST_BYTES, lambda content: Root.parse(content, where))
    except MissingObjectError:
        return None


@contextmanager
def changes_explained(location: RemoteFolder, manifest: Manifest, when: str, advice: str) -> Iterator[None]:
    """Objects that are missing or different may mean that the cache itself is gone, or another.

    Raises:
        RemoteChangedError: the cache was removed or replaced since its manifest was read.
        CorruptCacheError: it was not; the cache is not whole, or an object is damaged.
    """
    try:
        yield
    except (MissingObjectError, CorruptCacheError) as error:
        now = find_root(location)
        if now is None or now.manifest != manifest:
            what = "removed" if now is None else "replaced by another cache"
            raise RemoteChangedError(f"{location.url} was {what} {when}; {advice}") from None
        if isinstance(error, CorruptCacheError):
            raise
        raise CorruptCacheError(
            f"an object is missing ({error}): the cache is not whole; push it again"
        ) from None


def read_metadata(location: RemoteFolder, root: Root, key: str) -> bytes:
    """A zarr.json of the cache at ``location``: of its provenance, an array or a group.

    Raises:
        MissingObjectError, CorruptCacheError: as :meth:`Root.checked`.
    """
    where = f"{location.url}/{key}"
    return location.read(key, MAX_METADATA_BYTES, lambda content: root.checked(key, content, where))
