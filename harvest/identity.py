"""What makes two harvests the same cache, and what an output folder already says about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import Manifest, UsageError, inspect_output, read_manifest
from ..store.identity import differences, whole_identity
from ..store.journal import read_journal
from .config import HarvestConfig


@dataclass(frozen=True)
class Existing:
    """What the output folder holds of a cache, finished or not."""

    identity: dict[str, Any]
    manifest: Manifest | None  # of a finished cache
    started: bool  # an unfinished cache that already has sequences


def look_at_output(path: Path) -> Existing | None:
    """What ``path`` holds; None when a new cache can begin there.

    Raises:
        UsageError: it holds something else.
    """
    state = inspect_output(path)
    if state == "foreign":
        raise UsageError(f"{path} holds something else than a cache; choose a new or empty folder")
    if state == "complete":
        manifest = read_manifest(path)
        return Existing(manifest.identity, manifest, started=True)
    journal = read_journal(path) if state == "incomplete" else None
    if journal is None:
        return None
    return Existing(journal.identity, None, started=journal.sequences > 0)


def pinned(existing: Existing | None, part: str) -> dict[str, Any]:
    """Facts of ``part`` ('model', 'text') that a former run settled: a dtype or revision left open stays as
    it was.
    """
    found = existing.identity.get(part) if existing is not None else None
    return dict(found) if isinstance(found, Mapping) else {}


def check_same(existing: Existing, identity: Mapping[str, Any], config: HarvestConfig, path: Path) -> None:
    """Refuse an output that belongs to another harvest.

    Raises:
        UsageError: with every setting that differs.
    """
    there = dict(existing.identity)
    widths = there.get("hooks")
    widths = widths if isinstance(widths, Mapping) else {}
    # The widths are not known yet: those of hooks that are there can be taken from there.
    hooks = {name: widths.get(name, 0) for name in config.hooks}
    context = config.tokens.context
    here = whole_identity(identity, hooks, context, config.seed, config.heldout_fraction, config.storage)
    if lines := differences(there, here):
        listed = "\n".join(f"  - {line}" for line in lines)
        what = "a finished" if existing.manifest is not None else "an unfinished"
        raise UsageError(
            f"{path} holds {what} cache of another identity; choose another folder, or remove it:\n{listed}"
        )
