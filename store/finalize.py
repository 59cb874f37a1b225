"""From the spill to the finished arrays: shard by shard, each durable before the next, so that it can be continued."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .durable import write_bytes
from .layout import SPLITS, ArraySpec, Layout
from .manifest import FileInfo, HookInfo
from .shard_file import write_shard
from .sharded_array import ShardedArray
from .shuffle import StoredOrder
from .spill import RecordLayout
from .statistics import exact_quantiles

STATISTICS_BLOCK_ROWS = 256


@dataclass
class Finalizer:
    """Writes every array of ``layout`` into ``cache`` from the spill in ``work``."""

    cache: Path
    work: Path
    layout: Layout
    seed: int
    num_buckets: int
    on_progress: Callable[[int, int], None] | None = None
    _files: list[FileInfo] = field(default_factory=list)
    _done_bytes: int = 0

    def run(self) -> tuple[list[FileInfo], dict[str, HookInfo]]:
        """Write all shards; returns the table of files and the hooks with the scalars of their statistics."""
        layout = self.layout
        self._total_bytes = sum(s.shard_size(i) for s in layout.arrays() for i in range(s.num_shards))
        self._order = StoredOrder(self.work / "spill", self.seed, self.num_buckets)
        for split in SPLITS:
            spec = layout.token(split)
            for shard in range(spec.num_shards):
                self._unit(f"{split}.token.{shard}", lambda s=split, i=shard: self._token_shard(s, i))
        hooks = {name: self._hook(name, number) for number, name in enumerate(layout.hooks)}
        for name, spec in (("ids", layout.ids()), ("document", layout.documents())):
            if (name == "ids" and layout.tokens == "ids and documents") or (
                name == "document" and layout.tokens != "none"
            ):
                for shard in range(spec.num_shards):
                    self._unit(
                        f"tokens.{name}.{shard}",
                        lambda n=name, s=spec, i=shard: self._sequence_shard(n, s, i),
                    )
        return sorted(self._files, key=lambda file: file.path), hooks

    def _unit(self, name: str, write: Callable[[], tuple[list[FileInfo], Any]]) -> Any:
        """Do ``write`` unless a former run did; its result is kept durably once its files are."""
        record = self.work / "done" / f"{name}.json"
        if record.is_file():
            saved = json.loads(record.read_bytes())
            files = [FileInfo.model_validate(values) for values in saved["files"]]
            extra = saved["extra"]
        else:
            files, extra = write()
            saved = {"files": [file.model_dump() for file in files], "extra": extra}
            write_bytes(record, json.dumps(saved).encode())
        self._files += files
        self._done_bytes += sum(file.size for file in files)
        if self.on_progress:
            self.on_progress(self._done_bytes, self._total_bytes)
        return extra

    def _write(self, spec: ArraySpec, shard: int, chunks: Iterator[NDArray[np.generic]]) -> FileInfo:
        path = spec.shard_path(shard)
        size, digest = write_shard(self.cache / path, chunks, spec.chunks_per_shard)
        return FileInfo(path=path, size=size, sha256=digest)

    def _token_shard(self, split: str, shard: int) -> tuple[list[FileInfo], None]:
        spec = self.layout.token(split)
        start = shard * spec.shard_rows
        positions = self._order.positions(split, start, start + spec.rows_of_shard(shard))
        return [self._write(spec, shard, chunks_of(self._order.tokens(positions), spec))], None

    def _sequence_shard(self, name: str, spec: ArraySpec, shard: int) -> tuple[list[FileInfo], None]:
        source = np.memmap(self.work / "spill" / name, dtype="<i4", mode="r").reshape(spec.shape)
        start = shard * spec.shard_rows
        rows = source[start : start + spec.rows_of_shard(shard)]
        return [self._write(spec, shard, chunks_of(rows, spec))], None

    def _hook(self, hook: str, number: int) -> HookInfo:
        layout = self.layout
        d_model, rows = layout.hooks[hook], layout.train_rows
        total = np.zeros((2, d_model))
        for split in SPLITS:
            spec = layout.activations(split, hook)
            for shard in range(spec.num_shards):
                sums = self._unit(
                    f"{split}.hook.{number}.{shard}",
                    lambda s=split, i=shard: self._hook_shard(s, hook, number, i),
                )
                if split == "train":
                    total += np.array(sums)
        moments = total / max(rows, 1)
        for name, values in (("mean", moments[0]), ("second_moment", moments[1])):
            spec = layout.statistic(hook, name)
            self._unit(
                f"stats.{number}.{name}",
                lambda s=spec, v=values: ([self._write(s, 0, chunks_of(v, s))], None),
            )
        norms = ShardedArray(self.cache, layout.norm("train", hook))
        quantiles = exact_quantiles(lambda: (norms[a : a + 65536] for a in range(0, rows, 65536)), rows)
        return HookInfo(d_model=d_model, mean_square_norm=float(moments[1].sum()), norm_quantiles=quantiles)

    def _hook_shard(self, split: str, hook: str, number: int, shard: int) -> tuple[list[FileInfo], Any]:
        layout = self.layout
        spec = layout.activations(split, hook)
        record = RecordLayout(layout.hooks[hook], layout.dtype)
        source = np.memmap(self.work / "spill" / f"hook.{number}", dtype=np.uint8, mode="r")
        source = source.reshape(-1, record.record_bytes)
        start, rows = shard * spec.shard_rows, spec.rows_of_shard(shard)
        positions = self._order.positions(split, start, start + rows)
        norm, mean = np.empty(rows, np.float32), np.empty(rows, np.float32)
        sums = np.zeros((2, spec.shape[1]))

        def chunks() -> Iterator[NDArray[np.generic]]:
            for first in range(0, rows, spec.chunk_rows):
                records = source[positions[first : first + spec.chunk_rows]]
                part = slice(first, first + len(records))
                norm[part], mean[part] = record.norm(records), record.mean(records)
                chunk = np.zeros((spec.chunk_rows, spec.shape[1]), dtype=spec.dtype)
                chunk[: len(records)] = record.rows(records)
                if split == "train":
                    raw = chunk[: len(records)].astype(np.float32)
                    if self.unit:
                        raw = raw * norm[part, None] + mean[part, None]
                    raw = raw.astype(np.float64)
                    sums[:] += raw.sum(axis=0), (raw * raw).sum(axis=0)
                yield chunk

        files = [self._write(spec, shard, chunks())]
        for values, other in ((norm, layout.norm(split, hook)), (mean, layout.mean(split, hook))):
            files.append(self._write(other, shard, chunks_of(values, other)))
        return files, sums.tolist()

    unit: bool = True


def chunks_of(rows: NDArray[np.generic], spec: ArraySpec) -> Iterator[NDArray[np.generic]]:
    """Inner chunks of ``rows``; the last one is filled up with zeros, as Zarr wants it."""
    for first in range(0, len(rows), spec.chunk_rows):
        block = np.ascontiguousarray(rows[first : first + spec.chunk_rows], dtype=spec.dtype)
        if len(block) < spec.chunk_rows:
            whole = np.zeros((spec.chunk_rows, *spec.shape[1:]), dtype=spec.dtype)
            whole[: len(block)] = block
            block = whole
        yield block
