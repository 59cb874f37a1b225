"""From the spill to the finished arrays, shard by shard.

Each unit of work writes the shards of one range of rows and then records, durably, what it wrote: a finalize
that was killed does the units that have no record, and ends with the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .durable import write_bytes
from .layout import SPLITS, ArraySpec, Layout
from .manifest import FileInfo, HookInfo
from .moments import add_moments, gather_records
from .records import RecordLayout
from .shard_file import CHUNKS_IN_FLIGHT, ShardWriter
from .sharded_array import ShardedArray
from .shuffle import StoredOrder, map_file
from .statistics import exact_quantiles

_QUANTILE_BLOCK_ROWS = 1 << 20

Unit = tuple[list[FileInfo], Any]  # the files written, and what else is to be remembered (plain JSON)


class Finalizer:
    """Writes every array of a cache from its spill. ``unit`` says whether stored rows are u rather than x."""

    def __init__(
        self,
        cache: Path,
        work: Path,
        layout: Layout,
        *,
        seed: int,
        num_buckets: int,
        unit: bool,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.cache = cache
        self.spill = work / "spill"
        self.done = work / "done"
        self.layout = layout
        self.unit = unit
        self.on_progress = on_progress
        self.order = StoredOrder(self.spill, seed, num_buckets)
        self.shards = ShardWriter()
        self.files: list[FileInfo] = []
        self.total_bytes = layout.total_bytes()
        self.done_bytes = 0

    def run(self) -> tuple[list[FileInfo], dict[str, HookInfo]]:
        """Write all shards; returns the table of files and the hooks with the scalars of their statistics."""
        try:
            for split in SPLITS:
                self._token_index(split)
            for name, spec in self.layout.sequence_arrays().items():
                self._sequences(name, spec)
            hooks = {hook: self._hook(hook, number) for number, hook in enumerate(self.layout.hooks)}
        finally:
            self.shards.close()
        return sorted(self.files, key=lambda file: file.path), hooks

    def _token_index(self, split: str) -> None:
        spec = self.layout.token(split)
        for shard in range(spec.num_shards):

            def write(shard: int = shard) -> Unit:
                start = shard * spec.shard_rows
                positions = self.order.positions(split, start, start + spec.rows_of_shard(shard))
                return [self._write(spec, shard, chunks_of(self.order.tokens(positions), spec))], None

            self._once(f"{split}.token.{shard}", write)

    def _sequences(self, name: str, spec: ArraySpec) -> None:
        source = map_file(self.spill / name, "<i4", spec.shape[1:])
        for shard in range(spec.num_shards):

            def write(shard: int = shard) -> Unit:
                start = shard * spec.shard_rows
                rows = source[start : start + spec.rows_of_shard(shard)]
                return [self._write(spec, shard, chunks_of(rows, spec))], None

            self._once(f"tokens.{name}.{shard}", write)

    def _hook(self, hook: str, number: int) -> HookInfo:
        layout = self.layout
        d_model, rows = layout.hooks[hook], layout.train_rows
        sums = np.zeros((2, d_model))
        for split in SPLITS:
            spec = layout.activations(split, hook)
            for shard in range(spec.num_shards):

                def write(split: str = split, shard: int = shard) -> Unit:
                    return self._hook_shard(hook, number, split, shard)

                partial = self._once(f"{split}.hook.{number}.{shard}", write)
                if split == "train":
                    sums += np.array(partial)
        moments = sums / max(rows, 1)
        for name, values in (("mean", moments[0]), ("second_moment", moments[1])):
            spec = layout.statistic(hook, name)

            def write_statistic(spec: ArraySpec = spec, values: NDArray[np.float64] = values) -> Unit:
                return [self._write(spec, 0, chunks_of(values, spec))], None

            self._once(f"stats.{number}.{name}", write_statistic)
        norms = ShardedArray(self.cache, layout.norm("train", hook))

        def blocks() -> Iterator[NDArray[np.float32]]:
            for start in range(0, rows, _QUANTILE_BLOCK_ROWS):
                yield norms[start : start + _QUANTILE_BLOCK_ROWS]

        return HookInfo(
            d_model=d_model,
            mean_square_norm=float(moments[1].sum()),
            norm_quantiles=exact_quantiles(blocks, rows),
        )

    def _hook_shard(self, hook: str, number: int, split: str, shard: int) -> Unit:
        """Activations, norm and mean of one range of rows; returns the moments' partial sums [2, D]."""
        layout = self.layout
        spec = layout.activations(split, hook)
        record = RecordLayout(layout.hooks[hook], layout.dtype)
        start, rows = shard * spec.shard_rows, spec.rows_of_shard(shard)
        positions = self.order.positions(split, start, start + rows)
        norm, mean = np.empty(rows, np.float32), np.empty(rows, np.float32)
        sums = np.zeros((2, spec.shape[1]))
        ring = [np.zeros((spec.chunk_rows, spec.shape[1]), record.word) for _ in range(CHUNKS_IN_FLIGHT + 1)]
        path = self.spill / f"hook.{number}"

        def chunks(records: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
            for slot, first in enumerate(range(0, rows, spec.chunk_rows)):
                part = slice(first, min(first + spec.chunk_rows, rows))
                chunk, used = ring[slot % len(ring)], part.stop - part.start
                gather_records(records, positions[part], record, chunk[:used], norm[part], mean[part])
                chunk[used:] = 0  # Zarr stores the last chunk at full size
                if split == "train":
                    add_moments(chunk[:used], norm[part], mean[part], self.unit, sums)
                yield chunk

        with path.open("rb") as file:
            self.order.will_need(file.fileno(), record.record_bytes, split, start + rows)
        records = map_file(path, "u1", (record.record_bytes,))
        files = [self._write(spec, shard, chunks(records))]
        for values, other in ((norm, layout.norm(split, hook)), (mean, layout.mean(split, hook))):
            files.append(self._write(other, shard, chunks_of(values, other)))
        return files, sums.tolist()

    def _write(self, spec: ArraySpec, shard: int, chunks: Iterator[NDArray[Any]]) -> FileInfo:
        path = spec.shard_path(shard)
        size, digest = self.shards.write(self.cache / path, chunks, spec.chunks_per_shard)
        return FileInfo(path=path, size=size, sha256=digest)

    def _once(self, name: str, write: Callable[[], Unit]) -> Any:
        """Do ``write`` unless a former run did; its result is kept durably once its files are."""
        record = self.done / f"{name}.json"
        if record.is_file():
            saved = json.loads(record.read_bytes())
            files, extra = [FileInfo.model_validate(values) for values in saved["files"]], saved["extra"]
        else:
            files, extra = write()
            saved = {"files": [file.model_dump() for file in files], "extra": extra}
            write_bytes(record, json.dumps(saved).encode())
        self.files += files
        self.done_bytes += sum(file.size for file in files)
        if self.on_progress:
            self.on_progress(self.done_bytes, self.total_bytes)
        return extra


def chunks_of(rows: NDArray[Any], spec: ArraySpec) -> Iterator[NDArray[Any]]:
    """Inner chunks of ``rows``; the last one is filled up with zeros, as Zarr wants it."""
    for first in range(0, len(rows), spec.chunk_rows):
        block = np.ascontiguousarray(rows[first : first + spec.chunk_rows], dtype=spec.dtype)
        if len(block) < spec.chunk_rows:
            whole = np.zeros((spec.chunk_rows, *spec.shape[1:]), dtype=spec.dtype)
            whole[: len(block)] = block
            block = whole
        yield block
