"""Writing a cache against a plain sequential write of the same bytes to files of the same size.

    python benchmarks/write.py [--quick] [--stages] [--mib N] [--width D] [--rounds R] [--folder DIR]

``shuffled`` is all of CacheWriter, of rows that can be made again (``commit_first=False``): float32 rows in,
normalized, spilled, sorted by key, written as shards with crc32c, sha256 and statistics. ``committed`` is the
same with a commit before the shards, so that a killed finalize loses nothing. ``unshuffled`` is the same
without spill and sort: rows encoded and written as shards in the order in which they come. Either way every
side syncs its files, or none does (``no fsync``: what the program costs where the disk is no limit). The ways
take turns. By default the cache is twice as large as the writer's memory; a smaller one (``--mib 384``) is
never spilled.

``--stages`` measures the stages of writing one at a time instead, and the whole writer, without fsync: on one
core, and on all of them, with the threads pinned. It says how much more cores would give.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shared.measuring import Cost, Report, parser, ratios, seconds_of, take_turns, timed
from shared.writing_stages import ROWS, pin, seconds_for_rows

from saecache.common.cores import usable_cores
from saecache.store import CacheWriter, StorageConfig
from saecache.store.encoding.encode import encode_rows
from saecache.store.encoding.records import RecordLayout
from saecache.store.encoding.stored_rows import StoredRows
from saecache.store.shard_file import CHUNKS_IN_FLIGHT, ShardWriter
from saecache.store.writing.planned_size import plan_layout

HOOK = "h"
CALL_ROWS = 8192  # rows in each call of the writer, about one forward


def blocks(x: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, rows, len(x)):
        yield x[: rows - start]


def write_plain(folder: Path, x: NDArray[np.float32], rows: int, storage: StorageConfig) -> None:
    """The bytes of the stored rows, in pieces of a chunk, a new file for every shard."""
    spec = plan_layout({HOOK: x.shape[1]}, 1, storage, train_rows=rows).activations("train", HOOK)
    chunk = np.ascontiguousarray(np.resize(x, (spec.chunk_rows, x.shape[1])).astype(np.float16))
    folder.mkdir()
    for shard in range(spec.num_shards):
        with (folder / str(shard)).open("wb", buffering=0) as file:
            for _ in range(spec.chunks_of_shard(shard)):
                file.write(chunk.data)
            os.fsync(file.fileno())


def write_shuffled(
    folder: Path, x: NDArray[np.float32], rows: int, storage: StorageConfig, commit_first: bool = False
) -> None:
    writer = CacheWriter(
        folder, hooks={HOOK: x.shape[1]}, identity={}, storage=storage, planned_sequences=rows
    )
    for block in blocks(x, rows):
        writer.write_rows({HOOK: block})
    writer.finalize(commit_first=commit_first)


def write_unshuffled(folder: Path, x: NDArray[np.float32], rows: int, storage: StorageConfig) -> None:
    layout = plan_layout({HOOK: x.shape[1]}, 1, storage, train_rows=rows)
    spec, record = layout.activations("train", HOOK), RecordLayout(x.shape[1], storage.dtype)
    shards = ShardWriter()
    records = np.empty((spec.chunk_rows, record.record_bytes), np.uint8)
    in_order = np.arange(spec.chunk_rows)
    ring = [StoredRows.empty(record, spec.chunk_rows) for _ in range(CHUNKS_IN_FLIGHT + 1)]

    def chunks(shard: int) -> Iterator[NDArray[np.uint16]]:
        for slot in range(spec.chunks_of_shard(shard)):
            first = (slot % max(1, len(x) // spec.chunk_rows)) * spec.chunk_rows
            encode_rows(x[first : first + spec.chunk_rows], records, record, True)
            rows = ring[slot % len(ring)]
            rows.place(records, in_order, in_order)
            yield rows.words

    for shard in range(spec.num_shards):
        shards.write(folder / spec.shard_path(shard), chunks(shard), spec.chunks_per_shard)
    shards.close()  # waits until all is durable


@contextmanager
def no_fsync() -> Iterator[None]:
    original, os.fsync = os.fsync, lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = original


def measure_stages(settings: argparse.Namespace, rows: int, x: NDArray[np.float32]) -> None:
    cores = usable_cores()
    report = Report("write", settings, f"rows of {settings.width} float16, {len(cores)} cores")

    def write_on(some: list[int]) -> Cost:
        pin(some)
        try:
            with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
                return timed(lambda: write_shuffled(Path(folder) / "out", x, rows, StorageConfig()))
        finally:
            pin(cores)

    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        one, more = (
            seconds_for_rows(settings.width, Path(folder), some, settings.rounds * 5)
            for some in (cores[:1], cores)
        )
    with no_fsync():
        whole = seconds_of(
            take_turns({n: partial(write_on, cores[:n]) for n in (1, len(cores))}, settings.rounds)
        )
    every = {name: (ROWS, one[name], ROWS * len(cores), more[name]) for name in one}
    every["the whole writer"] = (rows, whole[1], rows, whole[len(cores)])
    for name, (few, seconds, _, _) in every.items():
        report.add(name, (few / 1e6 / time for time in seconds), "M rows/s", "on one core")
    for name, (few, seconds, many, others) in every.items():
        faster = (many / b * a / few for a, b in zip(seconds, others, strict=True))
        report.add(
            f"{name}, all cores / one", faster, group=f"rows per second on {len(cores)} cores / on one"
        )
    report.save()


WAYS: dict[str, Callable[[Path, NDArray[np.float32], int, StorageConfig], None]] = {
    "plain": write_plain,
    "unshuffled": write_unshuffled,
    "shuffled": write_shuffled,
    "committed": partial(write_shuffled, commit_first=True),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=2048, help="size of the stored rows")
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    options.add_argument("--stages", action="store_true", help="the stages one at a time, on pinned cores")
    settings = options.parse_args()
    if settings.quick:
        settings.mib, settings.rounds = 64, 3
    storage = StorageConfig()
    rows = (settings.mib << 20) // (2 * settings.width) // storage.chunk_rows * storage.chunk_rows
    gigabytes = rows * 2 * settings.width / 1e9
    x = np.random.default_rng(0).normal(size=(CALL_ROWS, settings.width)).astype(np.float32)
    if settings.stages:
        settings.label = settings.label or "stages"
        measure_stages(settings, rows, x)
        return
    report = Report("write", settings, f"{rows:,} rows of {settings.width} float16, {gigabytes:.2f} GB")

    def write_once(write: Callable[..., None]) -> Cost:
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            return timed(lambda: write(Path(folder) / "out", x, rows, storage))

    turns = {name: partial(write_once, way) for name, way in WAYS.items()}
    for label, policy in (("with fsync", nullcontext), ("without fsync", no_fsync)):
        with policy():
            seconds = seconds_of(take_turns(turns, settings.rounds))
        for name, taken in seconds.items():
            report.add(name, (gigabytes / time for time in taken), "GB/s", f"{label}: speed")
        for name in ("unshuffled", "shuffled", "committed"):
            faster = ratios(seconds["plain"], seconds[name])
            report.add(f"{name} / plain", faster, group=f"{label}: ratio of speeds")
    report.save()


if __name__ == "__main__":
    main()
