"""A smaller cache: some of the hooks, or the first rows, which are a uniform sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ..reading.reader import ActivationCache
from .derive import Derivation, Derived, Progress, derive, describe_origin, read_storage, source_identity
from .replay import Part


def slice_cache(
    source: ActivationCache,
    out: Path | str,
    *,
    hooks: Sequence[str] | None = None,
    rows: int | None = None,
    heldout_rows: int | None = None,
    memory_bytes: int | None = None,
    on_rows: Progress | None = None,
    on_bytes: Progress | None = None,
) -> Derived:
    """Copy a part of ``source`` into a new cache; the same call goes on when it was interrupted.

    Training rows are stored in the order of a uniform shuffle, so the first ones are a uniform sample. All
    token ids and documents come along: they say where the rows come from. A slice by hooks alone has the
    identity, and the bytes, of a harvest of those hooks.

    Args:
        source: a finished cache.
        out: folder of the new cache.
        hooks: which hooks, None for all.
        rows: the first training rows, None for all.
        heldout_rows: the first held-out rows, None for all.
        memory_bytes, on_rows, on_bytes: as :func:`.derive.derive`.

    Raises:
        UsageError: no such hook, more rows than there are, or a folder that holds something else.
        CorruptCacheError: the source is damaged.
    """
    manifest = source.manifest
    chosen = list(source.hooks if hooks is None else hooks)
    widths = {hook: source.d_model(hook) for hook in chosen}
    if not 0 < len(widths) == len(chosen):
        raise UsageError(f"hooks: expected different hooks of {', '.join(source.hooks)}, got {chosen}")
    train = _limit_rows("rows", rows, len(source), least=1)
    heldout = _limit_rows("heldout_rows", heldout_rows, manifest.heldout_rows, least=0)
    identity = source_identity(manifest)
    former = identity.pop("slice", {})
    limits = dict(former) if isinstance(former, dict) else {}
    if train < manifest.train_rows:
        limits["train_rows"] = train
    if heldout < manifest.heldout_rows:
        limits["heldout_rows"] = heldout
    if len(widths) < len(source.hooks) and _sinks_were_dropped(identity):
        limits.setdefault("of_hooks", sorted(source.hooks))
    if limits:
        identity["slice"] = limits
    part = Part(cache=source, sequences=manifest.sequences, train_rows=train, heldout_rows=heldout)
    derivation = Derivation(
        parts=[part],
        source=identity,
        hooks=dict(sorted(widths.items())),
        storage=read_storage(manifest),
        counts=manifest.counts,
        provenance={"derived": {"by": "slice", "from": [describe_origin(source)]}},
    )
    return derive(out, derivation, memory_bytes=memory_bytes, on_rows=on_rows, on_bytes=on_bytes)


def _limit_rows(what: str, wanted: int | None, there: int, *, least: int) -> int:
    if wanted is None:
        return there
    if not least <= wanted <= there:
        raise UsageError(f"{what}: expected from {least} to the {there} rows of the cache, got {wanted}")
    return wanted


def _sinks_were_dropped(identity: dict[str, Any]) -> bool:
    """A sink at any hook is dropped from all: then the rows of a hook depend on the other hooks."""
    selection = identity.get("selection")
    return isinstance(selection, dict) and selection.get("sink_ratio") is not None
