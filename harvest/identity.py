"""What makes two harvests the same cache, and what an output folder already says about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..store import Manifest, UsageError, inspect_output, read_manifest
from ..store.identity import differences, whole_identity
from ..store.writing.journal import read_journal
from .config import HarvestConfig


@dataclass(frozen=True)
class Existing:
    """What the output folder holds of a cache, finished or not."""

    identity: dict[str, Any]
    manifest: Manifest | None  # of a finished cache
    progress: dict[str, Any] = field(default_factory=dict)  # of an unfinished cache, at its last commit


def read_existing(path: Path) -> Existing | None:
    """What ``path`` holds; None when a new cache can begin there.

    Raises:
        UsageError: it holds something else.
    """
    state = inspect_output(path)
    if state == "foreign":
        raise UsageError(f"{path} holds something else than a cache; choose a new or empty folder")
    if state == "complete":
        manifest = read_manifest(path)
        return Existing(manifest.identity, manifest)
    journal = read_journal(path) if state == "incomplete" else None
    if journal is None:
        return None
    return Existing(journal.identity, None, journal.progress)


def settled_facts(existing: Existing | None, part: str) -> dict[str, Any]:
    """Facts of ``part`` ('model', 'text') that a former run settled.

    A dtype or revision that is left open stays as it was.
    """
    found = existing.identity.get(part) if existing is not None else None
    return dict(found) if isinstance(found, Mapping) else {}


def check_same(
    existing: Existing,
    identity: Mapping[str, Any],
    config: HarvestConfig,
    heldout_fraction: float,
    path: Path | str,
) -> None:
    """Refuse an output that belongs to another harvest.

    Raises:
        UsageError: with every setting that differs.
    """
    there, here = dict(existing.identity), _as_there(existing, identity, config, heldout_fraction)
    if lines := differences(there, here):
        listed = "\n".join(f"  - {line}" for line in lines)
        what = "a finished" if existing.manifest is not None else "an unfinished"
        hint = ""
        if existing.manifest is not None and _grows(there, here):
            hint = f"\nto grow it, give another --out and --extend {path}"
        elif any(line.startswith("text.") for line in lines):
            hint = (
                "\na cache is identified by every byte of its text, also of the part that was not read yet: "
                "with the files as they were, the harvest continues"
            )
        raise UsageError(
            f"{path} holds {what} cache of another identity; choose another place, or remove it:\n"
            f"{listed}{hint}"
        )


def check_extends(
    base: Existing, identity: Mapping[str, Any], config: HarvestConfig, heldout_fraction: float
) -> None:
    """Refuse to extend a finished cache to something else than more tokens of its stream.

    Raises:
        UsageError: with every setting that differs.
    """
    there, here = dict(base.identity), _as_there(base, identity, config, heldout_fraction)
    if not _grows(there, here):
        before, wanted = there.pop("num_tokens"), here.pop("num_tokens")
        listed = "\n".join(f"  - {line}" for line in differences(there, here))
        if listed:
            raise UsageError(
                f"the cache cannot be extended to this harvest: only num_tokens may differ, but\n{listed}"
            )
        raise UsageError(f"the cache has num_tokens={before} already; expected more than that, got {wanted}")


def _as_there(
    existing: Existing, identity: Mapping[str, Any], config: HarvestConfig, heldout_fraction: float
) -> dict[str, Any]:
    """The whole identity of this harvest. The widths are not known yet: they are taken from there."""
    widths = existing.identity.get("hooks")
    widths = widths if isinstance(widths, Mapping) else {}
    hooks = {name: widths.get(name, 0) for name in config.hooks}
    context = config.tokens.context
    return whole_identity(identity, hooks, context, config.seed, heldout_fraction, config.storage)


def _grows(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """They differ in num_tokens alone, and there are more of them here."""
    same = {**there, "num_tokens": 0} == {**here, "num_tokens": 0}
    before = there.get("num_tokens")
    return same and isinstance(before, int) and before < here["num_tokens"]
