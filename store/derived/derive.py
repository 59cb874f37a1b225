"""A new cache from finished ones: what slices, merged and converted caches have in common."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...common.errors import CorruptCacheError, UsageError
from ..config import StorageConfig
from ..identity import OWN_KEYS, differences, whole_identity
from ..manifest import Manifest
from ..manifest_file import check_files, load_manifest
from ..reading.reader import ActivationCache
from ..remote.places.urls import is_url
from ..writing.output import inspect_output
from ..writing.planned_size import PlannedSize, check_disk_space, plan_layout
from ..writing.writer import CacheWriter
from .heldout import read_heldout_fraction, read_seed
from .replay import Part, replay


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A finished cache that was made of others. ``reused``: it existed before, and nothing was done."""

    path: Path
    manifest: Manifest
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """Everything that decides the bytes of a derived cache, and where it comes from."""

    parts: Sequence[Part]
    source: Mapping[str, Any]  # the identity without the keys that the writer adds
    hooks: Mapping[str, int]
    storage: StorageConfig
    counts: Mapping[str, int]
    provenance: Mapping[str, Any]


Progress = Callable[[int, int], None]


def derive(
    out: Path | str,
    derivation: Derivation,
    *,
    memory_bytes: int | None = None,
    on_rows: Progress | None = None,
    on_bytes: Progress | None = None,
) -> Derived:
    """Write the cache of ``derivation`` into a new folder, or go on with the unfinished one that is there.

    Args:
        out: the new cache's folder.
        derivation: what decides its bytes.
        memory_bytes: bound on buffers, as in ``StorageConfig``; does not change what is written.
        on_rows: called with (rows read, rows in all).
        on_bytes: called with (bytes written, bytes in all) while shards are written.

    Raises:
        UsageError: ``out`` holds something else, or is a URL; the disk is too small.
        CorruptCacheError: a source is damaged.
        DiskFullError: the same call goes on once there is room.
    """
    if is_url(out):
        raise UsageError(
            f"{out}: a cache is made from others in a folder; from there, 'saecache cache push FOLDER {out}'"
        )
    out = Path(out)
    first = derivation.parts[0].cache.manifest
    seed, heldout_fraction = read_seed(first), read_heldout_fraction(first)
    identity = whole_identity(
        derivation.source, derivation.hooks, first.context, seed, heldout_fraction, derivation.storage
    )
    if inspect_output(out) == "complete":
        there = load_manifest(out)
        if lines := differences(there.identity, identity):
            listed = "\n".join(f"  - {line}" for line in lines)
            raise UsageError(
                f"{out} holds a finished cache of another identity; choose another folder:\n{listed}"
            )
        check_files(out, there)
        return Derived(path=out, manifest=there, reused=True)
    _check_room(out, derivation)
    rows = sum(part.train_rows + part.heldout_rows for part in derivation.parts)
    with CacheWriter(
        out,
        hooks=derivation.hooks,
        context=first.context,
        identity=derivation.source,
        seed=seed,
        heldout_fraction=heldout_fraction,
        storage=derivation.storage.with_memory_bytes(memory_bytes),
        provenance=derivation.provenance,
        planned_sequences=-(-rows // first.context),
    ) as writer:
        replay(writer, derivation.parts, on_progress=on_rows)
        manifest = writer.finalize(counts=derivation.counts, on_progress=on_bytes, commit_first=False)
    return Derived(path=out, manifest=manifest, reused=False)


def source_identity(manifest: Manifest) -> dict[str, Any]:
    """The part of the identity that the caller of the writer gave."""
    return {key: value for key, value in manifest.identity.items() if key not in OWN_KEYS}


def read_storage(manifest: Manifest) -> StorageConfig:
    """How a cache is stored, according to its identity.

    Raises:
        CorruptCacheError: the identity has nothing of the kind, or contradicts the manifest.
    """
    try:
        storage = StorageConfig.model_validate(manifest.identity.get("storage"))
    except ValidationError as error:
        raise CorruptCacheError(
            f"the cache's identity does not say how it is stored: {error.errors()[0]['msg']}"
        ) from None
    if (storage.dtype, storage.normalization) != (manifest.dtype, manifest.normalization):
        raise CorruptCacheError(
            f"the cache's identity says {storage.dtype}, {storage.normalization}, its manifest "
            f"{manifest.dtype}, {manifest.normalization}"
        )
    return storage


def describe_origin(cache: ActivationCache) -> dict[str, Any]:
    """The entry of a source in the provenance of a derived cache."""
    return {"fingerprint": cache.fingerprint, "provenance": cache.provenance}


def _check_room(out: Path, derivation: Derivation) -> None:
    """Refuse before the work when the disk cannot hold spill and result."""
    manifest = derivation.parts[0].cache.manifest
    sizes = {
        name: sum(getattr(part, name) for part in derivation.parts)
        for name in ("train_rows", "heldout_rows", "sequences")
    }
    layout = plan_layout(
        derivation.hooks, manifest.context, derivation.storage, tokens=manifest.tokens, **sizes
    )
    done = 0
    for file in out.rglob("*") if out.is_dir() else ():
        with suppress(FileNotFoundError):  # of another process, which has removed it meanwhile
            done += file.stat().st_size if file.is_file() else 0
    check_disk_space(out, PlannedSize.of_layout(layout), already_bytes=done)
