"""Other numbers in a finished cache, with the checksums that belong to them: as if it had been written so."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecache.store import ShardedArray
from saecache.store.layout import ArraySpec, metadata_bytes
from saecache.store.manifest_file import load_manifest
from saecache.store.shard_file import ShardWriter
from saecache.store.writing.publish import root_metadata


def alter(path: Path, spec: ArraySpec, edit: Callable[[NDArray[Any]], Any]) -> None:
    """Change an uncompressed array of the cache at ``path``; ``edit`` gets all of it, [N, ...]."""
    values = ShardedArray(path, spec)[:]
    edit(values)
    padded = np.zeros((spec.num_shards * spec.shard_rows, *spec.shape[1:]), values.dtype)
    padded[: len(values)] = values
    writer = ShardWriter()
    for shard in range(spec.num_shards):
        first = shard * spec.shard_rows
        starts = range(first, first + spec.chunks_of_shard(shard) * spec.chunk_rows, spec.chunk_rows)
        chunks = [padded[start : start + spec.chunk_rows] for start in starts]
        writer.write(path / spec.shard_path(shard), chunks, spec.chunks_per_shard).result()
    writer.close()
    seal(path)


def seal(path: Path) -> None:
    """Write the manifest anew, with the sha256 that the files have now."""
    manifest = load_manifest(path)
    files = [
        file.model_copy(update={"sha256": hashlib.sha256((path / file.path).read_bytes()).hexdigest()})
        for file in manifest.files
    ]
    sealed = manifest.from_layout(
        manifest.layout,
        manifest.identity,
        dict(manifest.hooks),
        manifest.normalization,
        counts=manifest.counts,
        files=files,
    )
    (path / "zarr.json").write_bytes(metadata_bytes(root_metadata(sealed)))
