"""Checking every byte of a cache against its manifest and its checksums."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import CorruptCacheError
from .derived.heldout import find_heldout_positions
from .keys import row_keys
from .layout import PROVENANCE_GROUP, SPLITS, ArraySpec, Layout
from .manifest import FileInfo, Manifest
from .manifest_file import load_manifest
from .reading.sharded_array import ShardedArray
from .untrusted_json import check_no_links, read_json
from .writing.publish import nested_metadata, root_metadata

_BLOCK_ROWS = 1 << 20
_RANGE_TOKENS = 1 << 27  # whose side of the split is held in memory at once

OpenArray = Callable[[ArraySpec], ShardedArray]


@dataclass
class VerifyReport:
    """What was read, and one line for each problem, which names its file."""

    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify_cache(path: Path | str, *, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read the whole cache and compare it with its manifest.

    This checks the size and sha256 of every shard, the index and the crc32c of every chunk, the metadata of
    every array and group, that rows are finite numbers, that token indices are distinct, in range, and in the
    order of the shuffle, and that every row is on the side of the held-out split where its document belongs.

    Args:
        path: the cache.
        on_progress: called with (bytes read, bytes in all) after every shard.

    Raises:
        UsageError, IncompleteCacheError, CorruptCacheError: there is no sound manifest to compare with.
    """
    path = Path(path)
    manifest = load_manifest(path)
    report = VerifyReport()
    try:
        check_no_links(path, [f"{PROVENANCE_GROUP}/zarr.json", *_all_files(manifest)])
    except CorruptCacheError as error:
        report.problems.append(str(error).removeprefix(f"{path}/"))
        return report  # what a link leads to is not read
    report.problems += _check_metadata(path, manifest)
    listed = {file.path: file for file in manifest.files}
    total = sum(file.size for file in manifest.files)
    done = 0
    for spec in manifest.layout.arrays():
        array = ShardedArray(path, spec)
        for shard in range(spec.num_shards):
            file = listed[spec.shard_path(shard)]
            found = list(_check_shard(path, file, array, shard))
            report.problems += found
            report.files += 1
            report.bytes += file.size if not found else 0
            done += file.size
            if on_progress:
                on_progress(done, total)
    if report.ok:  # numbers from damaged files prove nothing
        report.problems += check_rows_in_place(manifest, lambda spec: ShardedArray(path, spec))
    return report


def check_rows_in_place(manifest: Manifest, open_array: OpenArray) -> list[str]:
    """A line for each rule that the rows of a cache break: order of the shuffle, side of the split."""
    return list(_check_tokens(manifest, open_array)) or list(_check_heldout(manifest, open_array))


def _all_files(manifest: Manifest) -> Iterator[str]:
    yield from (file.path for file in manifest.files)
    yield from (f"{node}/zarr.json" for node in nested_metadata(manifest.layout))


def _check_shard(path: Path, file: FileInfo, array: ShardedArray, shard: int) -> Iterator[str]:
    try:
        size = (path / file.path).stat().st_size
        if size != file.size:
            yield f"{file.path}: {size} bytes, expected {file.size}"
            return
        with (path / file.path).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        yield f"{file.path}: cannot be read ({error.strerror})"
        return
    named = False
    first = shard * array.spec.chunks_per_shard
    for number in range(first, first + array.spec.chunks_of_shard(shard)):
        try:
            array.chunk(number)
        except CorruptCacheError as error:
            named = True
            yield str(error).removeprefix(f"{path}/")
            if "index" in str(error):
                break
        array.release([number])
    if digest != file.sha256 and not named:
        yield f"{file.path}: sha256 is {digest}, expected {file.sha256}"


def _check_metadata(path: Path, manifest: Manifest) -> Iterator[str]:
    nodes: dict[str, dict[str, Any]] = {"": root_metadata(manifest)} | nested_metadata(manifest.layout)
    for node, expected in nodes.items():
        file = path / node / "zarr.json"
        name = f"{node}/zarr.json".lstrip("/")
        try:
            got = read_json(file)
        except OSError as error:
            yield f"{name}: cannot be read ({error.strerror})"
        except ValueError:
            yield f"{name}: not valid JSON"
        else:
            if got != expected:
                yield f"{name}: not the metadata that follows from the manifest"


def _token_blocks(
    layout: Layout, open_array: OpenArray
) -> Iterator[tuple[str, ArraySpec, int, NDArray[np.uint64]]]:
    """(split, array, first row, token indices of some rows), of all rows in turn."""
    for split in SPLITS:
        spec = layout.token(split)
        array = open_array(spec)
        for start in range(0, spec.shape[0], _BLOCK_ROWS):
            yield split, spec, start, array[start : start + _BLOCK_ROWS]


def _check_tokens(manifest: Manifest, open_array: OpenArray) -> Iterator[str]:
    """Rows are distinct positions of the sequences: training rows by shuffle key, held-out rows ascending."""
    layout, seed = manifest.layout, manifest.identity.get("seed")
    last = np.empty(0, np.uint64)
    for split, spec, start, tokens in _token_blocks(layout, open_array):
        keys = row_keys(seed, tokens) if split == "train" and isinstance(seed, int) else tokens
        joined = np.concatenate([last, keys]) if start else keys
        if tokens.max() >= layout.sequences * layout.context:
            yield f"{spec.path}: token {tokens.max()} is beyond the {layout.sequences} sequences"
            return
        if (joined[1:] <= joined[:-1]).any():
            yield f"{spec.path}: rows are not in the order that follows from the seed"
            return
        last = keys[-1:]


def _check_heldout(manifest: Manifest, open_array: OpenArray) -> Iterator[str]:
    """Rows of held-out documents, and no others, are in the held-out split."""
    layout = manifest.layout
    if not isinstance(manifest.identity.get("seed"), int):
        return  # without a seed there is nothing to compare with
    if manifest.tokens == "none":  # every row is its own document; a slice may name billions that it lacks

        def of_rows(tokens: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
            return np.arange(len(tokens)), find_heldout_positions(manifest, tokens[:, None], tokens)[:, 0]

        yield from _find_misplaced(layout, open_array, of_rows)
        return
    array = open_array(layout.documents())
    sequences = max(1, _RANGE_TOKENS // layout.context)
    for first in range(0, layout.sequences, sequences):
        last = min(first + sequences, layout.sequences)
        heldout = np.empty((last - first, layout.context), np.bool_)
        step = max(1, _BLOCK_ROWS // layout.context)
        for start in range(first, last, step):
            stop = min(start + step, last)
            numbers = np.arange(start, stop)
            heldout[start - first : stop - first] = find_heldout_positions(
                manifest, array[start:stop], numbers
            )
        positions, before = heldout.reshape(-1), first * layout.context

        def of_range(
            tokens: NDArray[np.int64], positions: NDArray[np.bool_] = positions, before: int = before
        ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
            inside = np.flatnonzero((tokens >= before) & (tokens < before + len(positions)))
            return inside, positions[tokens[inside] - before]

        yield from _find_misplaced(layout, open_array, of_range)


def _find_misplaced(
    layout: Layout,
    open_array: OpenArray,
    find_heldout: Callable[[NDArray[np.int64]], tuple[NDArray[np.intp], NDArray[np.bool_]]],
) -> Iterator[str]:
    """The first row on the wrong side of the split.

    ``find_heldout`` gets token indices [n]. It returns the places [m] of those that it knows, and which of
    these are held out, [m].
    """
    for split, spec, start, tokens in _token_blocks(layout, open_array):
        known, heldout = find_heldout(tokens.astype(np.int64))
        wrong = known[heldout != (split == "heldout")]
        if len(wrong):
            side = "held out" if split == "train" else "not held out"
            yield f"{spec.path}: row {start + int(wrong[0])} is of a document that is {side}"
            return
