"""Copying rows of finished caches into a writer, as they are stored: slicing, merging and extending use it.

Sequences come first, then training rows in stored order, then held-out rows in reading order. The writer's
journal says how far it got, so a copy that was killed goes on, and the finished bytes are those of a cache
that was written from the model: the shuffle puts rows in order by their keys, however they arrived. So
several processes may copy: each of them some rows in every round, and the first one also the sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import BadActivationError
from ...distributed.group import ALONE, Group
from ..encoding.number_types import decode_words, encode_words
from ..encoding.records import RecordLayout
from ..layout import SPLITS
from ..reading.reader import ActivationCache
from ..reading.sharded_array import ShardedArray
from ..writing.helper import HelperWriter, commit_together
from ..writing.journal import damaged_journal
from ..writing.writer import CacheWriter

COMMIT_BYTES = 1 << 30
_BLOCK_BYTES = 16 << 20  # of one hook's rows, or of token ids, read at once


@dataclass(frozen=True, kw_only=True)
class Part:
    """The sequences and rows to copy of one finished cache, from the front.

    Rows of later sequences than ``sequences`` are left out. Sequence 0 becomes ``first_sequence``, document 0
    ``first_document``.
    """

    cache: ActivationCache
    sequences: int
    train_rows: int
    heldout_rows: int
    first_sequence: int = 0
    first_document: int = 0

    @classmethod
    def whole(cls, cache: ActivationCache, *, first_sequence: int = 0, first_document: int = 0) -> "Part":
        """All of ``cache``."""
        manifest = cache.manifest
        return cls(
            cache=cache,
            sequences=manifest.sequences,
            train_rows=manifest.train_rows,
            heldout_rows=manifest.heldout_rows,
            first_sequence=first_sequence,
            first_document=first_document,
        )


@dataclass(frozen=True)
class _Stage:
    """One stretch of the work, of ``total`` items: it can continue from any of them.

    With ``shared`` each process writes some of them, otherwise the first one writes all.
    """

    total: int
    step: int
    write: Callable[[int, int], int]  # (first, last) -> bytes
    shared: bool

    def write_share(self, group: Group, first: int, last: int) -> int:
        """Write what falls to this process of the items ``first:last``; returns its bytes."""
        if not self.shared:
            return self.write(first, last) if group.is_first else 0
        start = first + group.rank * self.step
        return self.write(start, min(last, start + self.step)) if start < last else 0


def replay(
    writer: CacheWriter | HelperWriter,
    parts: Sequence[Part],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
) -> None:
    """Write ``parts`` one after the other, from where the writer's last commit stands, and commit.

    Args:
        writer: of the hooks to take (each part has them) and of the parts' context and seed.
        parts: what to take.
        on_progress: called with (rows done, rows in all).
        stop_asked: whether to stop, with the same answer in all processes.
        group: the processes that write the cache; all call this. What fails in one of them fails in all.

    Raises:
        CorruptCacheError: naming a damaged file of a source.
        DiskFullError: the same call continues once there is room.
        KeyboardInterrupt: ``stop_asked()``; what was committed is kept.
    """
    stages = [stage for part in parts for stage in _stages(writer, part)]
    total_rows = sum(part.train_rows + part.heldout_rows for part in parts)
    number, done = _read_place(writer, stages)
    uncommitted = 0
    while number < len(stages):
        stage = stages[number]
        while done < stage.total:
            last = min(done + stage.step * (group.size if stage.shared else 1), stage.total)
            with group.together():
                uncommitted += stage.write_share(group, done, last)
            done = last
            if group.any(uncommitted >= COMMIT_BYTES):
                commit_together(writer, group, writer.progress | {"replayed": [number, done]})
                uncommitted = 0
            if on_progress:
                on_progress(_rows_done(stages, number, done), total_rows)
            if stop_asked():
                raise KeyboardInterrupt
        number, done = number + 1, 0
    commit_together(writer, group, writer.progress | {"replayed": [number, 0]})


def _read_place(writer: CacheWriter | HelperWriter, stages: Sequence[_Stage]) -> tuple[int, int]:
    """(stage, items of it that are done), according to the journal."""
    match writer.progress.get("replayed", [0, 0]):
        case [int(number), int(done)] if 0 <= number <= len(stages) and done >= 0:
            if done <= (stages[number].total if number < len(stages) else 0):
                return number, done
    raise damaged_journal(writer.path, "it names no place among the rows to copy")


def _rows_done(stages: Sequence[_Stage], number: int, done: int) -> int:
    """Every third stage, from the first on, is of sequences."""
    before = [stage.total for place, stage in enumerate(stages[:number]) if place % 3]
    return sum(before) + (done if number % 3 else 0)


def _stages(writer: CacheWriter | HelperWriter, part: Part) -> Iterator[_Stage]:
    context = writer.context
    arrays = _token_arrays(part)

    def write_sequences(first: int, last: int) -> int:
        block = {name: array[first:last] for name, array in arrays.items()}
        if "document" in block:
            documents = block["document"]
            documents[documents >= 0] += np.int32(part.first_document)
        assert isinstance(writer, CacheWriter)
        writer.write_token_arrays(part.cache.manifest.tokens, last - first, block)
        return sum(array.nbytes for array in block.values())

    yield _Stage(part.sequences, max(1, _BLOCK_BYTES // (4 * context)), write_sequences, shared=False)
    for split in SPLITS:
        rows = part.train_rows if split == "train" else part.heldout_rows
        yield _Stage(rows, _rows_of_block(writer, part), _RowCopy(writer, part, split), shared=True)


class _RowCopy:
    """Copies rows ``first:last`` of one split."""

    def __init__(self, writer: CacheWriter | HelperWriter, part: Part, split: str) -> None:
        cache, layout = part.cache, part.cache.manifest.layout
        self._writer, self._part, self._split = writer, part, split
        self._token = cache.stored(layout.token(split))
        self._arrays = {
            hook: [
                cache.stored(spec) for spec in (layout.activations(split, hook), *layout.beside(split, hook))
            ]
            for hook in writer.hooks
        }

    def __call__(self, first: int, last: int) -> int:
        context = self._writer.context
        token = self._token[first:last]
        wanted: Any = token < np.uint64(self._part.sequences * context)
        if wanted.all():
            wanted = slice(None)  # saves a copy
        records = {
            hook: self._encode(hook, [array[first:last][wanted] for array in arrays])
            for hook, arrays in self._arrays.items()
        }
        token = token[wanted] + np.uint64(self._part.first_sequence * context)
        self._writer.write_records(self._split, token, records)
        return sum(block.nbytes for block in records.values())

    def _encode(self, hook: str, stored: list[NDArray[Any]]) -> NDArray[np.uint8]:
        """Rows [n, D], norm, mean (and scale) [n] of the source as the writer's records [n, record_bytes]."""
        rows, norm, mean, *scales = stored
        scale = scales[0] if scales else None
        before = self._part.cache.manifest.dtype
        layout = RecordLayout(self._writer.hooks[hook], self._writer.storage.dtype)
        records = np.zeros((len(rows), layout.record_bytes), np.uint8)
        layout.norm(records)[:] = norm
        layout.mean(records)[:] = mean
        words = layout.words(records)
        if layout.dtype == before:
            words[:, : layout.d_model] = rows.view(layout.word)
            if scale is not None:
                layout.scale(records)[:] = scale
            return records
        x = decode_words(rows, before, scale)
        bad = encode_words(x, layout.dtype, words, layout.scale(records) if layout.has_scale else None)
        if bad.any():
            largest = float(np.abs(x[bad]).max())
            raise BadActivationError(
                f"hook {hook}: values up to {largest:.4g} are too large for {layout.dtype}; "
                "convert to bfloat16, int8 or float32"
            )
        return records


def _rows_of_block(writer: CacheWriter | HelperWriter, part: Part) -> int:
    layout = part.cache.manifest.layout
    block_bytes = min(_BLOCK_BYTES, writer.storage.memory_bytes // 8)
    rows = max(1, block_bytes // (4 * max(writer.hooks.values())))
    return rows if layout.codec is None else max(1, rows // layout.chunk_rows) * layout.chunk_rows


def _token_arrays(part: Part) -> dict[str, ShardedArray]:
    """Token arrays of the cache by their name below ``tokens/``."""
    cache = part.cache
    specs = cache.manifest.layout.sequence_arrays()
    return {name: cache.stored(spec) for name, spec in specs.items()}
