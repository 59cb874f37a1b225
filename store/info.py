"""What ``saecache cache info`` shows. Loads neither torch nor Numba."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.counts import format_bytes
from ..common.errors import SaecacheError
from ..common.printable import printable
from .layout import ArraySpec
from .manifest import Manifest
from .manifest_file import load_manifest
from .provenance import read_provenance as read_provenance
from .reading.chunks import ShardedChunks
from .reading.mapped_shards import ShardFiles
from .remote.opening import open_remote
from .remote.places.urls import is_url
from .untrusted_json import check_no_links

_SHOWN_ELSEWHERE = ("hooks", "context", "storage")
_LONGEST = 100  # label or value
_SHOWN_QUANTILES = ("0.01", "0.25", "0.5", "0.75", "0.99", "1")
_LARGEST = 0.001  # share of the rows whose |x|^2 is compared with that of all
_SINK_SHARE = 0.1  # of E|x|^2 in them, from which on the setting against attention sinks is named
_MOST_ROWS = 1 << 22
_CHEAP_BYTES = 4 << 20  # of norms and means, at most, that are downloaded to be looked at

read_manifest = load_manifest


@dataclass(frozen=True)
class LargestRows:
    """The share of E|x|^2 that is in the ``rows`` with the largest |x| among ``looked_at`` rows."""

    share: float
    rows: int
    looked_at: int


def largest_rows(place: Path | str, manifest: Manifest) -> dict[str, LargestRows | str]:
    """How much of E|x|^2 the largest 0.1 % of the training rows of each hook have.

    |x|^2 is norm^2 + D mean^2 of the stored norms and means. At most 2^22 rows are looked at, the first ones,
    which are a uniform sample. Of a cache at a URL norms and means are downloaded, if they are few bytes.

    Returns:
        By hook; where the norms cannot be read, the reason; {} where they would be a large download.
    """
    files: ShardFiles | None = None
    if is_url(place):
        if 8 * manifest.train_rows * len(manifest.hooks) > _CHEAP_BYTES:
            return {}
        try:
            place, _, files = open_remote(str(place))
        except SaecacheError as error:
            return dict.fromkeys(manifest.hooks, str(error))
    return {hook: _largest_rows(place, manifest, hook, files) for hook in manifest.hooks}


def _largest_rows(
    place: Path | str, manifest: Manifest, hook: str, files: ShardFiles | None
) -> LargestRows | str:
    count = min(manifest.train_rows, _MOST_ROWS)
    layout = manifest.layout
    try:
        norm = _first_values(place, layout.norm("train", hook), count, files)
        mean = _first_values(place, layout.mean("train", hook), count, files)
    except SaecacheError as error:
        return str(error)
    energy = norm**2 + layout.hooks[hook] * mean**2
    rows = ceil(_LARGEST * count)
    largest = np.partition(energy, count - rows)[count - rows :]
    return LargestRows(float(largest.sum() / max(energy.sum(), np.finfo(float).tiny)), rows, count)


def _first_values(
    place: Path | str, spec: ArraySpec, count: int, files: ShardFiles | None
) -> NDArray[np.float64]:
    """The first values of an array of one dimension."""
    if files is None:
        check_no_links(Path(place), [spec.shard_path(shard) for shard in range(spec.num_shards)])
    chunks = ShardedChunks(place, spec, files=files)
    numbers = range(-(-count // spec.chunk_rows))
    return np.concatenate([chunks.chunk(number) for number in numbers])[:count].astype(np.float64)


def describe(
    manifest: Manifest,
    provenance: Mapping[str, Any] | None = None,
    largest: Mapping[str, LargestRows | str] | None = None,
) -> list[tuple[str, str]]:
    """Label and value, in the order in which they are shown."""
    size = sum(file.size for file in manifest.files)
    codec = "" if manifest.codec is None else f", compressed by {manifest.codec.kind}"
    lines = [
        ("fingerprint", manifest.fingerprint),
        ("format version", str(manifest.format_version)),
        ("training rows", f"{manifest.train_rows:,}"),
        ("held-out rows", f"{manifest.heldout_rows:,}"),
        ("sequences", f"{manifest.sequences:,} of {manifest.context:,} positions"),
        ("stored as", f"{manifest.dtype}{codec}, normalization {manifest.normalization}"),
        ("size", f"{format_bytes(size)} in {len(manifest.files):,} shards"),
    ]
    for name, hook in manifest.hooks.items():
        levels = {level: hook.norm_quantiles.get(level) for level in _SHOWN_QUANTILES}
        median, top = levels["0.5"], levels["1"]
        norms = "" if median is None or top is None else f", norm {median:.4g} (median) to {top:.4g}"
        lines.append((f"hook {name}", f"{hook.d_model} wide{norms}"))
        shown = [f"{float(level):.0%}: {norm:.4g}" for level, norm in levels.items() if norm is not None]
        lines.append((f"norms of {name}", ", ".join(shown).replace("%", " %")))
        if largest:
            lines.append((f"largest rows of {name}", _describe_largest(largest[name])))
    lines += [(printable(name), f"{count:,}") for name, count in manifest.counts.items()]
    source = {key: value for key, value in manifest.identity.items() if key not in _SHOWN_ELSEWHERE}
    lines += _flatten(source)
    lines += _flatten(provenance or {})
    return [(_cut(label), value) for label, value in lines]


def _describe_largest(largest: LargestRows | str) -> str:
    if isinstance(largest, str):
        return largest
    advice = "; the setting sink_ratio leaves such rows out" if largest.share >= _SINK_SHARE else ""
    return f"{largest.share:.1%} of E|x|^2 is in {largest.rows:,} of {largest.looked_at:,} rows{advice}"


def _flatten(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of ``a.b`` and value for nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, _cut(f"{place}.{key}" if place else str(key)))
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield printable(place), _cut(printable(text))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
