"""More tokens of the same stream: a harvest that takes the rows of a finished cache instead of making them.

The new cache is the one that a single longer harvest makes, byte for byte. Only whole blocks of sequences are
copied (see :mod:`.forward`); the text is read again up to there, without the model, and compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...common.progress import progress_bar
from ...distributed.group import Group
from ...store import ActivationCache, UsageError, open_cache
from ...store.derived.derive import describe_origin
from ...store.derived.replay import Part, replay
from ...store.writing.helper import HelperWriter, commit_together
from ...store.writing.writer import CacheWriter
from ..identity import Existing
from ..model.forward import block_sequences, whole_blocks
from ..plan import HarvestPlan
from ..text.packing import Cursor
from .row_writer import Progress
from .stream import token_batches

_BATCH_TOKENS = 1 << 16
_COUNTED_ROWS = 1 << 20


def open_base(path: Path | str) -> tuple[ActivationCache, Existing]:
    """The finished cache that is to be extended.

    Raises:
        UsageError: it has no tokens of a text.
        and what :func:`saecache.open_cache` raises.
    """
    cache = open_cache(path)
    if cache.manifest.tokens != "ids and documents" or "num_tokens" not in cache.manifest.identity:
        raise UsageError(f"{path} was not made by 'saecache harvest': only harvested caches can be extended")
    return cache, Existing(cache.manifest.identity, cache.manifest)


@dataclass(frozen=True)
class BasePrefix:
    """The sequences that a longer harvest copies from a finished cache.

    ``progress`` is that of the longer harvest when it has them.
    """

    cache: ActivationCache
    sequences: int
    progress: Progress

    def copy_rows(
        self, writer: CacheWriter | HelperWriter, group: Group, stop_asked: Callable[[], bool]
    ) -> None:
        """Copy the rows, from where the last run stood, and commit ``progress``; all processes together.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was committed is kept.
        """
        if self.sequences:
            manifest = self.cache.manifest
            part = Part(
                cache=self.cache,
                sequences=self.sequences,
                train_rows=manifest.train_rows,
                heldout_rows=manifest.heldout_rows,
            )
            with progress_bar("copy", "row", hidden=not group.is_first) as bar:

                def on_progress(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                replay(
                    writer,
                    [part],
                    on_progress=on_progress,
                    stop_asked=lambda: group.any(stop_asked()),
                    group=group,
                )
        commit_together(writer, group, self.progress.to_json())

    def to_json(self) -> dict[str, Any]:
        """What the other processes of the harvest take over, by :meth:`from_json`."""
        return {"sequences": self.sequences, "progress": self.progress.to_json()}

    @classmethod
    def from_json(cls, cache: ActivationCache, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`, for the same ``cache``."""
        return cls(cache, values["sequences"], Progress.from_json(values["progress"]))


def match_base(
    cache: ActivationCache, plan: HarvestPlan, begun: Progress, medians: dict[str, float]
) -> BasePrefix:
    """Read the text up to where ``cache`` ends, and check that its sequences are those of the stream.

    Args:
        cache: the one to extend.
        plan: the longer harvest.
        begun: the longer harvest, with its batch size and conditions; on a GPU blocks are batches.
        medians: norms that attention sinks are judged by.

    Raises:
        UsageError: the text is not the one that the cache was harvested from.
    """
    assert begun.batch_size is not None
    block = block_sequences(plan.device, plan.rule.context, begun.batch_size)
    sequences = cache.manifest.sequences // block * block
    progress, seen, by_role = Progress(), 0, 0
    step = whole_blocks(max(1, _BATCH_TOKENS // plan.rule.context), block)
    with progress_bar("compare text", "tok", sequences * plan.rule.context) as bar:
        for batch in token_batches(plan, Cursor(), 0, step) if sequences else ():
            known = batch.sequences.first(min(len(batch.sequences), sequences - seen))
            keep = batch.keep[: len(known)]
            places = slice(seen, seen + len(known))
            same = (cache.tokens[places] == known.ids) & (cache.documents[places] == known.documents)
            if not same.all():
                first = seen + int(np.flatnonzero(~same.all(axis=1))[0])
                raise UsageError(
                    f"sequence {first} of {cache.path} is not what the text gives now: the text or the "
                    "tokenizer has changed; harvest again without --extend"
                )
            progress.add(known, keep)
            by_role += int(keep.sum())
            seen += len(known)
            bar.update(known.ids.size)
            if seen == sequences:
                break
    if seen < sequences:
        raise UsageError(f"the text ends after {seen} of the {sequences} sequences of {cache.path}")
    progress.excluded["sink"] = by_role - _rows_before(cache, sequences)
    progress.batch_size, progress.median_norms = begun.batch_size, medians
    progress.extends = describe_origin(cache)
    progress.conditions = begun.conditions
    seconds = cache.provenance.get("harvest_seconds")
    if isinstance(seconds, int | float) and seconds > 0:
        progress.seconds = float(seconds)
    return BasePrefix(cache, sequences, progress)


def batch_size_of(cache: ActivationCache) -> int | None:
    """The batch size that the cache was harvested with, if it says so."""
    found = cache.provenance.get("batch_size")
    return found if isinstance(found, int) and 0 < found < 1 << 20 else None


def _rows_before(cache: ActivationCache, sequences: int) -> int:
    """Rows of the first ``sequences`` sequences, of both splits."""
    limit, count = np.uint64(sequences * cache.context), 0
    for split in ("train", "heldout"):
        token = cache.token_index(split)
        for start in range(0, len(token), _COUNTED_ROWS):
            count += int((token[start : start + _COUNTED_ROWS] < limit).sum())
    return count
