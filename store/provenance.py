"""Facts about a cache that are no part of its identity, kept apart in ``provenance/zarr.json``."""

from pathlib import Path
from typing import Any

from .layout import PROVENANCE_GROUP
from .untrusted_json import check_depth, read_json

PROVENANCE = f"{PROVENANCE_GROUP}/zarr.json"


def read_provenance(path: Path | str) -> dict[str, Any]:
    """Facts that are not part of the identity (created, software, throughput); {} where there are none."""
    try:
        return provenance_facts(read_json(Path(path) / PROVENANCE))
    except (OSError, ValueError):
        return {}  # nothing depends on them


def provenance_facts(metadata: Any) -> dict[str, Any]:
    """The facts in the metadata of a provenance group; {} if the metadata are malformed."""
    try:
        attributes = metadata["attributes"]
        check_depth(attributes, PROVENANCE_GROUP)
    except (ValueError, KeyError, TypeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}
