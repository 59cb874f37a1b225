"""What ``saecache cache info`` says. Reads the manifest and nothing else; loads no torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .config import GIB, MIB
from .layout import PROVENANCE_GROUP
from .manifest import Manifest, load_manifest
from .untrusted import check_depth, read_json

PROVENANCE_FILE = f"{PROVENANCE_GROUP}/zarr.json"
_SHOWN_ELSEWHERE = ("hooks", "context", "storage")
_LONGEST_VALUE = 100


def read_manifest(path: Path | str) -> Manifest:
    """The checked manifest of a local cache; errors as :func:`load_manifest`."""
    return load_manifest(Path(path))


def read_provenance(path: Path | str) -> dict[str, Any]:
    """Facts that do not make it another cache (created, software, throughput); {} where there are none."""
    try:
        return provenance_facts(read_json(Path(path) / PROVENANCE_FILE))
    except (OSError, ValueError):
        return {}  # nothing depends on them


def provenance_facts(metadata: Any) -> dict[str, Any]:
    """The facts in the metadata of a provenance group; {} where they are not what they should be."""
    try:
        attributes = metadata["attributes"]
        check_depth(attributes, PROVENANCE_GROUP)
    except (ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def describe(manifest: Manifest, provenance: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
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
        ("size", f"{readable_bytes(size)} in {len(manifest.files):,} shards"),
    ]
    for name, hook in manifest.hooks.items():
        median, largest = hook.norm_quantiles.get("0.5"), hook.norm_quantiles.get("1")
        norms = "" if median is None or largest is None else f", norm {median:.4g} (median) to {largest:.4g}"
        lines.append((f"hook {name}", f"{hook.d_model} wide{norms}"))
    lines += [(printable(name), f"{count:,}") for name, count in manifest.counts.items()]
    source = {key: value for key, value in manifest.identity.items() if key not in _SHOWN_ELSEWHERE}
    lines += _leaves(source)
    return lines + list(_leaves(provenance or {}))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as ``a.b``: value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        place, text = printable(place), printable(text)
        yield place, text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def printable(text: str) -> str:
    """A cache may come from anybody: what would steer the terminal is shown, not obeyed."""
    return text if text.isprintable() else ascii(text)


def readable_bytes(count: int) -> str:
    """For people: MiB or GiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"
