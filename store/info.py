"""What ``saecache cache info`` says. Reads the manifest and nothing else; loads no torch."""

import json
from pathlib import Path
from typing import Any

from .config import GIB
from .layout import PROVENANCE_GROUP
from .manifest import Manifest, load_manifest


def read_manifest(path: Path | str) -> Manifest:
    """The checked manifest of a local cache; errors as :func:`load_manifest`."""
    return load_manifest(Path(path))


def read_provenance(path: Path | str) -> dict[str, Any]:
    """Volatile facts of a cache (creation time, software, throughput); empty when there are none."""
    file = Path(path) / PROVENANCE_GROUP / "zarr.json"
    if not file.is_file():
        return {}
    attributes = json.loads(file.read_bytes()).get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """Label and value, in the order they are shown."""
    size = sum(file.size for file in manifest.files)
    lines = [
        ("fingerprint", manifest.fingerprint),
        ("format version", str(manifest.format_version)),
        ("training rows", f"{manifest.train_rows:,}"),
        ("held-out rows", f"{manifest.heldout_rows:,}"),
        ("sequences", f"{manifest.sequences:,} of {manifest.context:,} positions"),
        ("stored as", f"{manifest.dtype}, normalization {manifest.normalization}"),
        ("size", f"{size / GIB:.2f} GiB in {len(manifest.files):,} shards"),
    ]
    for name, hook in manifest.hooks.items():
        median = hook.norm_quantiles.get("0.5")
        norm = f", median norm {median:.4g}" if median is not None else ""
        lines.append((f"hook {name}", f"{hook.d_model} wide{norm}"))
    lines += [(key, f"{value:,}") for key, value in manifest.counts.items()]
    return lines
