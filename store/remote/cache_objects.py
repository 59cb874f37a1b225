"""The objects of a cache: every one with its size and sha256, on the disk and in a bucket.

Shards are in the manifest with both. The zarr.json of arrays and groups follow from the manifest: they are
compared with what follows from it. ``provenance/zarr.json`` is volatile and small, and nothing depends on it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from ...common.untrusted_files import open_regular
from ..manifest import MAX_MANIFEST_BYTES, FileInfo, Manifest, check_files, load_manifest, parse_manifest
from ..provenance import PROVENANCE as PROVENANCE
from ..untrusted import MAX_DEPTH, MAX_METADATA_BYTES, check_depth, check_no_links, parse_json
from ..writing.publish import nested_metadata, root_metadata
from .failures import MissingObjectError, RemoteChangedError
from .remote_folder import RemoteFolder

ROOT = "zarr.json"
UNFINISHED = ".unfinished.json"
"""The root's zarr.json under another name: a cache that is being pushed or removed, or whose push stopped."""
HARVEST_CLAIM = ".harvest.json"
"""In the place of the root while a harvest writes there."""


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
        """Every key that the place of the cache may have; claims may be left over from a killed command."""
        shards = (file.path for file in self.manifest.files)
        return frozenset([ROOT, UNFINISHED, HARVEST_CLAIM, PROVENANCE, *self.metadata, *shards])


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
        CorruptCacheError: one of them is missing, or is not the one that follows from the manifest.
    """
    found = []
    for key in [*root.metadata, *([PROVENANCE] if (path / PROVENANCE).is_file() else [])]:
        content = _read_small(path / key)
        if key != PROVENANCE:
            check_metadata(content, root.metadata[key], str(path / key))
        found.append(CacheObject(key, len(content), hashlib.sha256(content).hexdigest()))
    return found


def check_metadata(content: bytes, expected: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        CorruptCacheError: ``content`` is not the zarr.json that follows from the manifest.
    """
    try:
        got = parse_json(content)
    except ValueError as error:
        raise CorruptCacheError(f"{where} is not valid JSON: {error}") from None
    if got != expected:
        raise CorruptCacheError(f"{where}: not the metadata that follow from the manifest")


def check_provenance(content: bytes, where: str) -> None:
    """
    Raises:
        CorruptCacheError: ``content`` is not the zarr.json of a group.
    """
    try:
        value = parse_json(content)
        check_depth(value, where)
        sound = value["node_type"] == "group" and isinstance(value.get("attributes", {}), dict)
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise CorruptCacheError(f"{where}: not the metadata of a group, at most {MAX_DEPTH} levels deep")


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
    if find_unfinished(location) is not None:
        raise IncompleteCacheError(
            f"the cache at {location.url} is not whole: somebody is pushing or removing it, or was "
            "interrupted; the same push continues it"
        )
    anything = location.objects(most=1)
    what = f"it has no {ROOT}; 'saecache cache ls' looks below it" if anything else "there is nothing there"
    raise UsageError(f"no cache at {location.url}: {what}")


def find_root(location: RemoteFolder) -> Root | None:
    """The finished cache at ``location``, or None; errors of its manifest as :func:`read_root`."""
    return _find(location, ROOT)


def find_unfinished(location: RemoteFolder) -> Root | None:
    """The cache that is being pushed to or removed from ``location``, or None."""
    return _find(location, UNFINISHED)


def _find(location: RemoteFolder, key: str) -> Root | None:
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
        MissingObjectError, CorruptCacheError: as :func:`check_provenance` and :func:`check_metadata`.
    """
    where = f"{location.url}/{key}"

    def parse(content: bytes) -> bytes:
        if key == PROVENANCE:
            check_provenance(content, where)
        else:
            check_metadata(content, root.metadata[key], where)
        return content

    return location.read(key, MAX_METADATA_BYTES, parse)


def foreign_key(keys: Iterable[str], root: Root) -> str | None:
    """The first of ``keys`` that is no part of the cache."""
    return next((key for key in keys if key not in root.keys), None)


def _read_small(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise CorruptCacheError(f"{path} cannot be read: {error.strerror}; the cache is not whole") from None
    if len(content) > MAX_METADATA_BYTES:
        raise CorruptCacheError(f"{path}: more than {MAX_METADATA_BYTES} bytes, no metadata are that large")
    return content
