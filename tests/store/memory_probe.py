"""Writes, finalizes and reads a cache of so many rows in a process of its own; prints the memory it took.

Measured is /proc/self/status while the part runs: anonymous memory (what the program allocated) and mapped
files (page cache that this process has in its address space), as growth over the beginning, in bytes.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from saecache.store import CacheWriter, StorageConfig, open_cache

WIDTH, MEMORY_BYTES = 256, 4 << 20


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {"anonymous": int(sizes["RssAnon"]) * 1024, "mapped": int(sizes["RssFile"]) * 1024}


@contextmanager
def watched(peaks: dict[str, dict[str, int]], name: str) -> Iterator[None]:
    start, stop = memory(), threading.Event()
    peak = dict.fromkeys(start, 0)

    def watch() -> None:
        while not stop.wait(0.002):
            for kind, size in memory().items():
                peak[kind] = max(peak[kind], size - start[kind])

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    stop.set()
    thread.join()
    peaks[name] = peak


def use(path: Path, rows: int, peaks: dict[str, dict[str, int]]) -> None:
    storage = StorageConfig(chunk_rows=512, shard_bytes=2 << 20, memory_bytes=MEMORY_BYTES)
    x = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    writer = CacheWriter(
        path, hooks={"h": WIDTH}, identity={}, storage=storage, heldout_fraction=0.05, planned_sequences=rows
    )
    with watched(peaks, "write"):
        for start in range(0, rows, len(x)):
            writer.write_rows({"h": x}, documents=np.arange(start, start + len(x)) // 10)
        writer.commit()
    with watched(peaks, "finalize"):
        writer.finalize()
    cache = open_cache(path)
    for epoch in (0, 1):
        with watched(peaks, f"read epoch {epoch}"):
            for _ in cache.batches("h", 1000, epoch=epoch, normalization="none"):
                pass
    with watched(peaks, "gather"):
        for start in range(0, rows // 2, 5000):
            cache.rows("h", np.arange(start, start + 5000)[::-1] % len(cache))


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    use(folder / "warm", 8000, {})  # kernels, thread stacks and allocator arenas
    peaks: dict[str, dict[str, int]] = {}
    use(folder / "cache", rows, peaks)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
