"""From the spill to the finished arrays, shard by shard.

Each unit of work writes the shards of one range of rows and then records, durably, what it wrote: a finalize
that was killed does the units that have no record, and ends with the same bytes. Several processes share the
units in the same way: each does some, and the first one then finds all records.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from math import fsum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ...common.errors import CorruptCacheError
from ...common.untrusted_files import read_regular
from ...distributed.group import Group
from ..disk_space import disk_explained
from ..durable import make_folders, write_bytes
from ..encoding.codecs import encode_ahead
from ..encoding.number_types import to_moment_words
from ..encoding.records import RecordLayout
from ..encoding.stored_rows import StoredRows
from ..layout import SPLITS, ArraySpec, Layout
from ..manifest import MAX_MANIFEST_BYTES, FileInfo, HookInfo
from ..reading.sharded_array import ShardedArray
from ..shard_file import CHUNKS_IN_FLIGHT, ShardWriter
from ..statistics import add_moments, exact_quantiles
from ..untrusted import parse_json
from .blocks import Block
from .shuffle import ShuffledSpill

_QUANTILE_BLOCK_ROWS = 1 << 20

_MEETING_BYTES = 256 << 20  # that a process writes before it meets the others again
_UNITS_UNDER_WAY = 2  # being synced and recorded while the next is made

Written = tuple[str, Future[tuple[int, str]]]  # a file's path, and its size and sha256 once it is durable
Unit = tuple[list[Written], Any]  # the files, and what else the record keeps (plain JSON)
NamedUnit = tuple[str, Callable[[], Unit]]  # the record's name, and what writes the files


class Delivery(Protocol):
    """Moves finished shards from the folder where they were written to the place of the cache."""

    def has(self, file: FileInfo, *, keep: bool) -> bool:
        """Whether a shard of a former run is still in the folder or, without ``keep``, at its place."""

    def take(self, file: FileInfo, *, keep: bool) -> None:
        """Copy a shard to its place; without ``keep`` it is then removed from the folder."""

    def meet(self, group: Group) -> None:
        """Wait for the copies of all processes of ``group``, and notice what is at the place then."""

    def finish(self) -> None:
        """Called once the manifest is written: wait for the copies, and copy what is left in the folder."""


class Finalizer:
    """Writes every array of a cache from its spill, and from the blocks that are still in memory.

    ``unit`` says whether stored rows are u rather than x.
    """

    def __init__(
        self,
        cache: Path,
        work: Path,
        layout: Layout,
        spills: Sequence[Path],
        *,
        seed: int,
        num_buckets: int,
        unit: bool,
        memory_bytes: int,
        on_progress: Callable[[int, int], None] | None = None,
        delivery: Delivery | None = None,
        in_memory: Sequence[Block] = (),
        drop_pages: bool = True,
    ) -> None:
        self.cache = cache
        self.spill = spills[0]  # which has the token arrays
        self.done = work / "done"
        self.layout = layout
        self.unit = unit
        self.on_progress = on_progress
        self.delivery = delivery
        self._read_again = tuple(f"{layout.norm('train', hook).path}/" for hook in layout.hooks)
        self.shards = ShardWriter()
        self.shuffled = ShuffledSpill(
            spills,
            seed,
            num_buckets,
            limit_bytes=memory_bytes // 4,
            in_use=self.shards.under_way,
            in_memory=in_memory,
            drop_pages=drop_pages,
            record_bytes=max(
                RecordLayout(width, layout.dtype).record_bytes for width in layout.hooks.values()
            ),
        )
        self._encoding = ThreadPoolExecutor(CHUNKS_IN_FLIGHT, "saecache-encode")
        self._recording = ThreadPoolExecutor(1, "saecache-record")
        self._under_way: deque[Future[list[FileInfo]]] = deque()
        self.files: list[FileInfo] = []
        self.total_bytes = layout.total_bytes()
        self.done_bytes = 0
        self._ring: list[NDArray[Any]] = []

    def run(self) -> tuple[list[FileInfo], dict[str, HookInfo]]:
        """Write all shards; returns the table of files and the hooks with the scalars of their statistics."""
        self._make_folders()
        try:
            for name, write in (*self._token_units(), *self._sequence_units()):
                self._once(name, write)
            hooks = {hook: self._hook(hook, number) for number, hook in enumerate(self.layout.hooks)}
        finally:
            self.close()
        return sorted(self.files, key=lambda file: file.path), hooks

    def run_share(self, group: Group, stop_asked: Callable[[], bool]) -> None:
        """Write the shards of rows, token indices and token arrays that fall to this process of ``group``.

        They meet again and again, so that they fail and stop together. Afterwards :meth:`run`, of a new
        finalizer in one of them, finds everything recorded but the statistics.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was recorded is kept.
        """
        shares = [self._share(rank, group.size) for rank in range(group.size)]
        mine = shares[group.rank]
        specs = [self.layout.activations("train", hook) for hook in self.layout.hooks]
        step = max(1, _MEETING_BYTES // max(spec.shard_rows * spec.row_bytes for spec in specs))
        on_progress, self.on_progress = self.on_progress, None  # which is told of all processes at once
        try:
            with group.together(), disk_explained(self.cache):
                self._make_folders()
            if self.delivery is not None:
                self.delivery.meet(group)
            for first in range(0, max(map(len, shares)), step):
                with group.together(), disk_explained(self.cache):
                    for name, write in mine[first : first + step]:
                        self._once(name, write)
                answers = group.gather_values([stop_asked(), self.done_bytes])
                if on_progress:
                    on_progress(sum(done for _, done in answers), self.total_bytes)
                if any(asked for asked, _ in answers):
                    raise KeyboardInterrupt
            with group.together(), disk_explained(self.cache):
                self._settle()
            if self.delivery is not None:
                self.delivery.meet(group)
        finally:
            self.close()

    def close(self) -> None:
        self.shuffled.close()
        self._encoding.shutdown()
        self.shards.close()
        self._recording.shutdown()

    def _share(self, rank: int, size: int) -> list[NamedUnit]:
        """The units of one of ``size`` processes: neighbouring ones, which read the same buckets."""
        hooks = chain.from_iterable(self._hook_units(hook, i) for i, hook in enumerate(self.layout.hooks))
        found: list[NamedUnit] = []
        for units in map(list, (self._token_units(), self._sequence_units(), hooks)):
            found += units[len(units) * rank // size : len(units) * (rank + 1) // size]
        return found

    def _make_folders(self) -> None:
        make_folders(sorted({(self.cache / path).parent for path in self._paths}))

    def _token_units(self) -> Iterator[NamedUnit]:
        for split in SPLITS:
            for shard in range(self.layout.token(split).num_shards):
                yield f"{split}.token.{shard}", partial(self._tokens, split, shard)

    def _sequence_units(self) -> Iterator[NamedUnit]:
        for name, spec in self.layout.sequence_arrays().items():
            for shard in range(spec.num_shards):
                yield f"tokens.{name}.{shard}", partial(self._sequences, name, shard)

    def _hook_units(self, hook: str, number: int) -> Iterator[NamedUnit]:
        for split in SPLITS:
            for shard in range(self.layout.activations(split, hook).num_shards):
                yield f"{split}.hook.{number}.{shard}", partial(self._hook_shard, hook, number, split, shard)

    def _tokens(self, split: str, shard: int) -> Unit:
        spec = self.layout.token(split)
        start = shard * spec.shard_rows
        tokens = self.shuffled.tokens(split, start, start + spec.rows_of_shard(shard))
        return [self._write(spec, shard, chunks_of(tokens, spec))], None

    def _sequences(self, name: str, shard: int) -> Unit:
        spec = self.layout.sequence_arrays()[name]
        rows = np.fromfile(
            self.spill / name,
            "<i4",
            count=spec.rows_of_shard(shard) * spec.shape[1],
            offset=shard * spec.shard_rows * spec.row_bytes,
        )
        return [self._write(spec, shard, chunks_of(rows.reshape(-1, spec.shape[1]), spec))], None

    def _statistic(self, spec: ArraySpec, values: NDArray[np.float64]) -> Unit:
        return [self._write(spec, 0, chunks_of(values, spec))], None

    def _hook(self, hook: str, number: int) -> HookInfo:
        """Write all rows of a hook, both splits, and its statistics."""
        layout = self.layout
        sums = np.zeros((2, layout.hooks[hook]))
        for name, write in self._hook_units(hook, number):
            partial_sums = self._once(name, write)
            if name.startswith("train"):
                if np.shape(partial_sums) != sums.shape:
                    raise CorruptCacheError(f"{self.done}: a record of {hook} is damaged; remove it")
                sums += np.array(partial_sums)
        moments = sums / max(layout.train_rows, 1)
        for name, values in (("mean", moments[0]), ("second_moment", moments[1])):
            unit = partial(self._statistic, layout.statistic(hook, name), values)
            self._once(f"stats.{number}.{name}", unit)
        self._settle()  # the norms are read again
        try:
            return HookInfo(
                d_model=layout.hooks[hook],
                mean_square_norm=fsum(moments[1]),
                norm_quantiles=exact_quantiles(partial(self._norms, hook), layout.train_rows),
            )
        except (
            ValidationError
        ):  # rows from a model are checked when they come, rows from another cache are not
            raise CorruptCacheError(
                f"hook {hook}: among the rows, or their norms, are some that are no finite numbers"
            ) from None

    def _norms(self, hook: str) -> Iterator[NDArray[np.float32]]:
        norms = ShardedArray(self.cache, self.layout.norm("train", hook))
        for start in range(0, len(norms), _QUANTILE_BLOCK_ROWS):
            yield norms[start : start + _QUANTILE_BLOCK_ROWS]

    def _hook_shard(self, hook: str, number: int, split: str, shard: int) -> Unit:
        """Write all arrays of one range of rows; the result holds the partial sums [2, D] of the moments."""
        layout = self.layout
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
                add_moments(numbers, stored.norm, stored.mean, self.unit, sums)

        def chunks() -> Iterator[NDArray[Any]]:
            slot = used = done = 0
            for stored in self.shuffled.rows(number, record, split, start, start + rows):
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
        return path, self.shards.write(self.cache / path, chunks, spec.chunks_per_shard)

    def _once(self, name: str, write: Callable[[], Unit]) -> Any:
        """Call ``write`` unless a former run did, and record its result once its files are durable."""
        record = self.done / f"{name}.json"
        done = self._read_record(record)
        if done is None:
            written, extra = write()
            self._under_way.append(self._recording.submit(_record, record, written, extra))
        else:
            files, extra = done
            self._under_way.append(self._recording.submit(lambda: files))
        self._settle(_UNITS_UNDER_WAY)
        return extra

    def _settle(self, most: int = 0) -> None:
        """Wait until at most so many units are under way."""
        while len(self._under_way) > most:
            files = self._under_way.popleft().result()
            self.files += files
            if self.delivery is not None:
                for file in files:
                    self.delivery.take(file, keep=file.path.startswith(self._read_again))
            self.done_bytes += sum(file.size for file in files)
            if self.on_progress:
                self.on_progress(self.done_bytes, self.total_bytes)

    def _read_record(self, record: Path) -> tuple[list[FileInfo], Any] | None:
        """The record of a former run; None if its files have to be written again."""
        if not record.is_file():
            return None
        try:
            saved = parse_json(read_regular(record, MAX_MANIFEST_BYTES))
            files = [FileInfo.model_validate(values) for values in saved["files"]]
            extra = None if saved["extra"] is None else np.array(saved["extra"], np.float64).tolist()
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if any(file.path not in self._paths for file in files):
            return None
        if self.delivery is not None:
            for file in files:
                if not self.delivery.has(file, keep=file.path.startswith(self._read_again)):
                    return None
        elif any(not _has_size(self.cache / file.path, file.size) for file in files):
            return None
        return files, extra

    @cached_property
    def _paths(self) -> frozenset[str]:
        """Every file that the cache may have."""
        arrays = self.layout.arrays()
        return frozenset(spec.shard_path(shard) for spec in arrays for shard in range(spec.num_shards))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _record(record: Path, written: list[Written], extra: Any) -> list[FileInfo]:
    """Record the files of a unit durably, once the files themselves are durable."""
    files = []
    for path, finished in written:
        size, digest = finished.result()
        files.append(FileInfo(path=path, size=size, sha256=digest))
    saved = {"files": [file.model_dump() for file in files], "extra": extra}
    write_bytes(record, json.dumps(saved).encode())
    return files


def chunks_of(rows: NDArray[Any], spec: ArraySpec) -> Iterator[NDArray[Any]]:
    """Inner chunks of ``rows``; the last one is padded with zeros, as Zarr requires."""
    for first in range(0, len(rows), spec.chunk_rows):
        block = np.ascontiguousarray(rows[first : first + spec.chunk_rows], dtype=spec.dtype)
        if len(block) < spec.chunk_rows:
            whole = np.zeros((spec.chunk_rows, *spec.shape[1:]), dtype=spec.dtype)
            whole[: len(block)] = block
            block = whole
        yield block
