"""More tokens of the same stream: a harvest that takes the rows of a finished cache instead of making them.

The new cache is the one that a single longer harvest makes, byte for byte. Only whole blocks of sequences are
taken (see :mod:`.forward`); the text is read again up to there, without the model, and compared.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..store import ActivationCache, UsageError, open_cache
from ..store.derived.derive import describe_origin
from ..store.derived.replay import Part, replay
from ..store.writing.writer import CacheWriter
from .forward import block_sequences, whole_blocks
from .identity import Existing
from .packing import Cursor
from .plan import Plan
from .progress import Progress
from .stream import batches

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
    return cache, Existing(cache.manifest.identity, cache.manifest, started=True)


@dataclass(frozen=True)
class Taken:
    """What a longer harvest takes of a finished cache, and how far along the stream that is."""

    cache: ActivationCache
    sequences: int
    progress: Progress

    def write(self, writer: CacheWriter, stop_asked: Callable[[], bool]) -> None:
        """Copy the rows, from where the last run stood.

        Raises:
            KeyboardInterrupt: ``stop_asked()``; what was committed is kept.
        """
        if self.sequences:
            manifest = self.cache.manifest
            part = Part(
                cache=self.cache,
                sequences=self.sequences,
                train_rows=manifest.train_rows,
                heldout_rows=manifest.heldout_rows,
            )
            with tqdm(desc="copy", unit="row", unit_scale=True) as bar:

                def on_progress(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)
                    if stop_asked():
                        raise KeyboardInterrupt

                replay(writer, [part], on_progress=on_progress)
        writer.commit(self.progress.to_json())


def retrace(cache: ActivationCache, plan: Plan, batch_size: int, medians: dict[str, float]) -> Taken:
    """Read the text up to where ``cache`` ends, and check that its sequences are those of the stream.

    Args:
        cache: the one to extend.
        plan: the longer harvest.
        batch_size: of the longer harvest; on a GPU blocks are batches.
        medians: norms that attention sinks are judged by.

    Raises:
        UsageError: the text is not the one that the cache was harvested from.
    """
    block = block_sequences(plan.device, plan.rule.context, batch_size)
    sequences = cache.manifest.sequences // block * block
    progress, seen, by_role = Progress(), 0, 0
    step = whole_blocks(max(1, _BATCH_TOKENS // plan.rule.context), block)
    with tqdm(desc="retrace", unit="tok", unit_scale=True, total=sequences * plan.rule.context) as bar:
        for batch in batches(plan, Cursor(), 0, step) if sequences else ():
            taken = batch.sequences.first(min(len(batch.sequences), sequences - seen))
            keep = batch.keep[: len(taken)]
            places = slice(seen, seen + len(taken))
            same = (cache.tokens[places] == taken.ids) & (cache.documents[places] == taken.documents)
            if not same.all():
                first = seen + int(np.flatnonzero(~same.all(axis=1))[0])
                raise UsageError(
                    f"sequence {first} of {cache.path} is not what the text gives now: the text or the "
                    "tokenizer has changed; harvest again without --extend"
                )
            progress.add(taken, keep, keep)
            by_role += int(keep.sum())
            seen += len(taken)
            bar.update(taken.ids.size)
            if seen == sequences:
                break
    if seen < sequences:
        raise UsageError(f"the text ends after {seen} of the {sequences} sequences of {cache.path}")
    progress.excluded["sink"] = by_role - _rows_before(cache, sequences)
    progress.batch_size, progress.median_norms = batch_size, medians
    seconds = cache.provenance.get("harvest_seconds")
    if isinstance(seconds, int | float) and seconds > 0:
        progress.seconds = float(seconds)
    return Taken(cache, sequences, progress)


def batch_size_of(cache: ActivationCache) -> int | None:
    """The batch size that the cache was harvested with, if it says so."""
    found = cache.provenance.get("batch_size")
    return found if isinstance(found, int) and 0 < found < 1 << 20 else None


def extension_facts(base: ActivationCache) -> dict[str, Any]:
    """What the provenance of an extended cache says besides that of a harvest."""
    return {"derived": {"by": "extend", "from": [describe_origin(base)]}}


def say_what_is_taken(taken: Taken) -> None:
    """One line for people."""
    print(
        f"extending {taken.cache.path}: {taken.progress.tokens:,} tokens are taken from there",
        file=sys.stderr,
        flush=True,
    )


def _rows_before(cache: ActivationCache, sequences: int) -> int:
    """Rows of the first ``sequences`` sequences, of both splits."""
    limit, count = np.uint64(sequences * cache.context), 0
    for split in ("train", "heldout"):
        token = cache.token_index(split)
        for start in range(0, len(token), _COUNTED_ROWS):
            count += int((token[start : start + _COUNTED_ROWS] < limit).sum())
    return count
