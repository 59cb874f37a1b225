"""Memory of writing, finalizing and reading a cache, for one size and for eight times as much.

    python benchmarks/memory.py [--quick] [--mib N] [--memory-mib M] [--width D] [--folder DIR]

Every size runs in a process of its own. Measured is the growth over the beginning of each part: anonymous
memory (what the program allocated) and mapped files (page cache in its address space, which the system may
take back). Later epochs map up to 32 chunks at once, 192 MiB at the default width: a window of 16, and the
next one. Chunks that were read stay mapped, up to a quarter of the available memory. Of a compressed cache as
many are decoded. With glibc every block above 64 KiB is mapped by itself:
freed memory is gone at once, and what the allocator would keep of it is not measured.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from shared.measuring import Report, parser

from saecache.store import CacheWriter, StorageConfig, convert_cache, open_cache
from saecache.store.encoding.codecs import ZstdCodec
from saecache.store.reading.kept_chunks import KEPT

HOOK, CALL_ROWS = "h", 2048
Peaks = dict[str, dict[str, int]]
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h


def give_back_freed_memory() -> None:
    """Without it, what glibc keeps of freed blocks differs by up to 12 MiB from run to run."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 64 << 10)
        mallopt(M_ARENA_MAX, 1)


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {"anonymous": int(sizes["RssAnon"]) * 1024, "mapped": int(sizes["RssFile"]) * 1024}


@contextmanager
def watched(peaks: Peaks, part: str) -> Iterator[None]:
    """Sample the memory while the block runs."""
    start, stop = memory(), threading.Event()
    peak = dict.fromkeys(start, 0)

    def watch() -> None:
        while not stop.wait(0.002):
            for kind, size in memory().items():
                peak[kind] = max(peak[kind], size - start[kind])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    peaks[part] = peak


def use_cache(folder: Path, rows: int, width: int, storage: StorageConfig) -> Peaks:
    """Write, finalize and read ``rows`` rows."""
    peaks: Peaks = {}
    x = np.random.default_rng(0).normal(size=(CALL_ROWS, width)).astype(np.float32)
    writer = CacheWriter(
        folder,
        hooks={HOOK: width},
        identity={},
        storage=storage,
        heldout_fraction=0.05,
        planned_sequences=rows,
    )
    with watched(peaks, "write"):
        for start in range(0, rows, CALL_ROWS):
            block = x[: rows - start]
            writer.write_rows({HOOK: block}, documents=np.arange(start, start + len(block)) // 100)
        writer.commit()
    with watched(peaks, "finalize"):
        writer.finalize()
    cache = open_cache(folder)
    for epoch in (0, 1):
        with watched(peaks, f"read, epoch {epoch}"):
            for _ in cache.batches(HOOK, 1024, epoch=epoch, normalization="none"):
                pass
    with watched(peaks, "read by number"):
        for start in range(0, rows // 2, CALL_ROWS):
            cache.rows(HOOK, np.arange(start, start + CALL_ROWS)[::-1] % len(cache))
    small = folder.with_name(f"{folder.name} converted")
    with watched(peaks, "convert"):  # as a slice, a merge or an extension, with compression besides
        codec = ZstdCodec(level=1)
        convert_cache(cache, small, dtype="int8", codec=codec, memory_bytes=storage.memory_bytes)
    with watched(peaks, "read compressed"):
        for _ in open_cache(small).batches(HOOK, 1024, epoch=1):
            pass
    return peaks


def measure(folder: Path, rows: int, arguments: argparse.Namespace) -> Peaks:
    command = [sys.executable, __file__, "--rows", str(rows), "--folder", str(folder)]
    for name in ("width", "memory_mib", "chunk_rows"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    peaks: Peaks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return peaks


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=256, help="size of the stored rows of the smaller cache")
    options.add_argument("--memory-mib", type=int, default=256, help="memory_bytes of the writer")
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--chunk-rows", type=int, default=4096)
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    options.add_argument("--rows", type=int, default=None, help="measure this many rows only, as JSON")
    options.add_argument("--kept-mib", type=int, default=None, help="of chunks that stay mapped (as in use)")
    settings = options.parse_args()
    if settings.quick:
        settings.mib, settings.memory_mib, settings.chunk_rows = 8, 8, 256
    if settings.rows is not None:  # one size, in a process of its own
        give_back_freed_memory()
        if settings.kept_mib is not None:
            KEPT.limit_bytes = settings.kept_mib << 20
        storage = StorageConfig(
            memory_bytes=settings.memory_mib << 20,
            shard_bytes=min(256 << 20, settings.memory_mib << 19),
            chunk_rows=settings.chunk_rows,
        )
        warm = 4 * CALL_ROWS  # kernels, thread stacks, arenas of the allocator
        use_cache(settings.folder / "warm", warm, settings.width, storage)
        peaks = use_cache(settings.folder / "cache", settings.rows, settings.width, storage)
        print(json.dumps(peaks))
        return
    rows = (settings.mib << 20) // (2 * settings.width)
    size = f"{settings.mib} and {8 * settings.mib} MiB of rows, memory_bytes of {settings.memory_mib} MiB"
    report = Report("memory", settings, size)
    for times in (1, 8):
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
            peaks = measure(Path(folder), rows * times, settings)
        for part, growth in peaks.items():
            for kind, grown in growth.items():
                report.add(f"{part}, {kind}", [grown / 2**20], "MiB", f"{times * settings.mib} MiB of rows")
    report.save()


if __name__ == "__main__":
    main()
