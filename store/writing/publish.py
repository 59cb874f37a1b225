"""The last step of writing: metadata of every array and group, provenance, and then the manifest."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...common.versions import software_versions
from ..durable import fsync_folder, make_folders, write_bytes
from ..layout import PROVENANCE_GROUP, Layout, group_metadata, metadata_bytes
from ..manifest import MANIFEST_ATTRIBUTE, Manifest

_FILES_AT_ONCE = 8
_SOFTWARE = ("saecache", "torch", "transformers", "datasets", "numpy", "numba")


def publish(path: Path, manifest: Manifest, provenance: Mapping[str, Any]) -> None:
    """Write all metadata; with the root's zarr.json, which comes last, the folder becomes a cache."""
    nodes = nested_metadata(manifest.layout)
    make_folders(path / node for node in (*nodes, PROVENANCE_GROUP))
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software_versions(_SOFTWARE),
        **provenance,
    }
    nodes[PROVENANCE_GROUP] = group_metadata(facts)

    def write(node: str) -> None:
        write_bytes(path / node / "zarr.json", metadata_bytes(nodes[node]))

    with ThreadPoolExecutor(_FILES_AT_ONCE, "saecache-publish") as threads:  # each waits for the disk
        list(threads.map(write, nodes))
    fsync_folder(path)
    write_bytes(path / "zarr.json", metadata_bytes(root_metadata(manifest)))


def nested_metadata(layout: Layout) -> dict[str, dict[str, Any]]:
    """zarr.json of every group and array below the root, by path: by depth, siblings together.

    Zarr-python rebuilds the tree from the consolidated listing and relies on that order. The provenance group
    is left out of it, because it differs between caches that are otherwise the same.
    """
    nodes = {group: group_metadata() for group in layout.groups()}
    nodes |= {spec.path: spec.metadata() for spec in layout.arrays()}
    return {node: nodes[node] for node in sorted(nodes, key=lambda node: (node.count("/"), node))}


def root_metadata(manifest: Manifest) -> dict[str, Any]:
    """The root group's zarr.json: the manifest as an attribute, and Zarr's consolidated metadata."""
    root = group_metadata({MANIFEST_ATTRIBUTE: manifest.to_attribute()})
    listing = {"kind": "inline", "must_understand": False, "metadata": nested_metadata(manifest.layout)}
    return {**root, "consolidated_metadata": listing}
