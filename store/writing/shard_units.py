"""The units of work that make the shards of a cache: each writes one range of rows of some arrays."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoding.codecs import encode_ahead
from ..encoding.number_types import to_moment_words
from ..encoding.records import RecordLayout
from ..encoding.stored_rows import StoredRows
from ..layout import SPLITS, ArraySpec, Layout
from ..shard_file import CHUNKS_IN_FLIGHT, ShardWriter
from ..statistics import add_moments
from .spills import Spills
from .unit_records import Unit, Written

NamedUnit = tuple[str, Callable[[], Unit]]  # the record's name, and what writes the files


class ShardUnits:
    """Makes the units of one cache; :meth:`close` ends the threads that do them.

    Args:
        cache: the folder of the cache.
        layout: of the cache.
        spills: what the shards are made from.
        shards: writes the files.
        unit: whether stored rows are u rather than x.
    """

    def __init__(
        self,
        cache: Path,
        layout: Layout,
        spills: Spills,
        shards: ShardWriter,
        *,
        unit: bool,
    ) -> None:
        self._cache, self._layout = cache, layout
        self._spills, self._shards, self._unit = spills, shards, unit
        self._encoding = ThreadPoolExecutor(CHUNKS_IN_FLIGHT, "saecache-encode")
        self._ring: list[NDArray[Any]] = []

    def close(self) -> None:
        self._spills.close()
        self._encoding.shutdown()
        self._shards.close()

    def keep_within(self, units: Iterable[NamedUnit]) -> None:
        """Tell the spills that only ``units`` will be done."""
        parts = (name.rpartition(".") for name, _ in units)
        self._spills.keep_within((array, int(shard)) for array, _, shard in parts)

    def of_tokens(self) -> Iterator[NamedUnit]:
        """Yield the units of the token index of each row, in both splits."""
        for split in SPLITS:
            for shard in range(self._layout.token(split).num_shards):
                yield f"{split}.token.{shard}", partial(self._tokens, split, shard)

    def of_sequences(self) -> Iterator[NamedUnit]:
        """Yield the units of the token arrays."""
        for name, spec in self._layout.sequence_arrays().items():
            for shard in range(spec.num_shards):
                yield f"tokens.{name}.{shard}", partial(self._sequences, name, shard)

    def of_hook(self, hook: str, number: int) -> Iterator[NamedUnit]:
        """Yield the units of the rows of ``hook``, whose number is ``number``, in both splits.

        The records of training rows keep their partial sums of x and x * x, [2, D].
        """
        for split in SPLITS:
            for shard in range(self._layout.activations(split, hook).num_shards):
                yield f"{split}.hook.{number}.{shard}", partial(self._rows, hook, number, split, shard)

    def of_statistics(self, hook: str, number: int, moments: NDArray[np.float64]) -> Iterator[NamedUnit]:
        """Yield the units of a hook's mean and second moment, which ``moments`` has, float64 [2, D]."""
        for name, values in zip(("mean", "second_moment"), moments, strict=True):
            unit = partial(self._statistic, self._layout.statistic(hook, name), values)
            yield f"stats.{number}.{name}", unit

    def _tokens(self, split: str, shard: int) -> Unit:
        spec = self._layout.token(split)
        start = shard * spec.shard_rows
        stop = start + spec.rows_of_shard(shard)
        tokens = self._spills.rows(None, split, start, stop).tokens(split, start, stop)
        return [self._write(spec, shard, chunks_of(tokens, spec))], None

    def _sequences(self, name: str, shard: int) -> Unit:
        spec = self._layout.sequence_arrays()[name]
        rows = self._spills.sequences(name, shard * spec.shard_rows, spec.rows_of_shard(shard))
        return [self._write(spec, shard, chunks_of(rows, spec))], None

    def _statistic(self, spec: ArraySpec, values: NDArray[np.float64]) -> Unit:
        return [self._write(spec, 0, chunks_of(values, spec))], None

    def _rows(self, hook: str, number: int, split: str, shard: int) -> Unit:
        """Write all arrays of one range of rows; the result holds the partial sums [2, D] of the moments."""
        layout = self._layout
        spec = layout.activations(split, hook)
        record = RecordLayout(layout.hooks[hook], layout.dtype)
        start, rows = shard * spec.shard_rows, spec.rows_of_shard(shard)
        columns = [np.empty(rows, np.float32) for _ in range(3 if record.has_scale else 2)]
        sums = np.zeros((2, spec.shape[1]))
        ring = self._chunk_buffers((spec.chunk_rows, spec.shape[1]), record.word)

        def collect(stored: StoredRows, first: int) -> None:
            for column, values in zip(columns, (stored.norm, stored.mean, stored.scale), strict=False):
                column[first : first + len(stored)] = values
            if split == "train":
                numbers = to_moment_words(stored.words, layout.dtype, stored.scale)
                add_moments(numbers, stored.norm, stored.mean, self._unit, sums)

        def chunks() -> Iterator[NDArray[Any]]:
            slot = used = done = 0
            shuffled = self._spills.rows(number, split, start, start + rows)
            for stored in shuffled.rows(number, record, split, start, start + rows):
                first = 0
                while first < len(stored):
                    count = min(spec.chunk_rows - used, len(stored) - first)
                    piece = stored[first : first + count]
                    collect(piece, done)
                    first, done = first + count, done + count
                    if count == spec.chunk_rows and spec.codec is None:
                        yield piece.words  # it stays where it is until it is written: see ``in_use``
                        continue
                    chunk = ring[slot]
                    chunk[used : used + count] = piece.words
                    used += count
                    if used == spec.chunk_rows or done == rows:
                        chunk[used:] = 0  # Zarr stores the last chunk at full size
                        yield chunk
                        slot, used = (slot + 1) % len(ring), 0

        files = [self._write(spec, shard, chunks())]
        for column, other in zip(columns, layout.beside(split, hook), strict=True):
            files.append(self._write(other, shard, chunks_of(column, other)))
        return files, sums.tolist()

    def _chunk_buffers(self, shape: tuple[int, int], word: np.dtype[Any]) -> list[NDArray[Any]]:
        """Buffers for all chunks in use at the same time; every shard uses them again."""
        if not self._ring or (self._ring[0].shape, self._ring[0].dtype) != (shape, word):
            self._ring = [np.empty(shape, word) for _ in range(CHUNKS_IN_FLIGHT + 1)]
        return self._ring

    def _write(self, spec: ArraySpec, shard: int, chunks: Iterator[NDArray[Any]]) -> Written:
        path = spec.shard_path(shard)
        if spec.codec is not None:
            chunks = encode_ahead(spec.codec, chunks, self._encoding, CHUNKS_IN_FLIGHT)
        return path, self._shards.write(self._cache / path, chunks, spec.chunks_per_shard)


def chunks_of(rows: NDArray[Any], spec: ArraySpec) -> Iterator[NDArray[Any]]:
    """Inner chunks of ``rows``; the last one is padded with zeros, as Zarr requires."""
    for first in range(0, len(rows), spec.chunk_rows):
        block = np.ascontiguousarray(rows[first : first + spec.chunk_rows], dtype=spec.dtype)
        if len(block) < spec.chunk_rows:
            whole = np.zeros((spec.chunk_rows, *spec.shape[1:]), dtype=spec.dtype)
            whole[: len(block)] = block
            block = whole
        yield block
