"""Training batches from a cache against np.memmap of the same bytes, zarr-python and tensorstore.

    python benchmarks/read.py [--quick] [--mib N] [--width D] [--batch B] [--rounds R] [--folder DIR]

Every reader ends with torch [B, D] batches of its own of the same rows: float16 as stored, then float32 as a
training step wants them. The rounds are interleaved and the medians compared; files are in the system's file
cache, as in a training run whose data fit in memory. ``checked`` opens the cache anew, so that every chunk is
checked against its crc32c; ``again`` is a later pass of the same process.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from saecache.store import CacheWriter, StorageConfig, open_cache

HOOK = "h"
Batches = Iterator[torch.Tensor]


def write_cache(path: Path, rows: int, width: int) -> None:
    block = np.random.default_rng(0).normal(size=(8192, width)).astype(np.float32)
    with CacheWriter(path, hooks={HOOK: width}, identity={}, storage=StorageConfig()) as writer:
        for start in range(0, rows, len(block)):
            writer.write_rows({HOOK: block[: rows - start]})


def readers(
    folder: Path, rows: int, width: int, batch: int, dtype: torch.dtype
) -> dict[str, Callable[[], Batches]]:
    """Name -> a pass over all rows in stored order."""
    cache = open_cache(folder / "cache")
    raw = np.memmap(folder / "raw", dtype=np.float16, mode="c", shape=(rows, width))
    order = np.random.default_rng(0).permutation(rows)

    def from_memmap() -> Batches:
        for start in range(0, rows, batch):
            yield torch.from_numpy(raw[start : start + batch]).to(dtype, copy=True)

    def from_memmap_at_random() -> Batches:
        for start in range(0, rows, batch):
            yield torch.from_numpy(raw[order[start : start + batch]]).to(dtype)

    def checked() -> Batches:
        yield from open_cache(folder / "cache").batches(HOOK, batch, dtype=dtype)

    found: dict[str, Callable[[], Batches]] = {
        "np.memmap": from_memmap,
        "saecache, checked": checked,
        "saecache, again": lambda: cache.batches(HOOK, batch, dtype=dtype),
        "np.memmap, rows at random": from_memmap_at_random,
        "saecache, later epoch": lambda: cache.batches(HOOK, batch, epoch=1, dtype=dtype),
    }
    path = folder / "cache" / "rows" / HOOK / "activations"
    found["zarr-python"] = lambda: from_array(zarr_array(path), rows, batch, dtype)
    try:
        array = tensorstore_array(path)
    except ModuleNotFoundError:
        print("tensorstore is not installed: left out")
    else:
        found["tensorstore"] = lambda: from_array(array, rows, batch, dtype)
    return found


def zarr_array(path: Path) -> object:
    import zarr

    return zarr.open_array(path, mode="r")


def tensorstore_array(path: Path) -> object:
    import tensorstore

    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()


def from_array(array: object, rows: int, batch: int, dtype: torch.dtype) -> Batches:
    for start in range(0, rows, batch):
        stop = min(start + batch, rows)
        yield torch.from_numpy(np.array(array[start:stop])).to(dtype)  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="64 MiB and three rounds")
    parser.add_argument("--mib", type=int, default=512, help="size of the stored rows")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.mib, arguments.rounds = 64, 3
    torch.set_num_threads(arguments.threads)
    rows = (arguments.mib << 20) // (2 * arguments.width)
    gigabytes = rows * 2 * arguments.width / 1e9
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_cache(folder / "cache", rows, arguments.width)
        stored = open_cache(folder / "cache")
        with (folder / "raw").open("wb") as file:
            for batch in stored.batches(HOOK, 4096, dtype=torch.float16):
                file.write(batch.numpy().data)
        for dtype in (torch.float16, torch.float32):
            passes = readers(folder, rows, arguments.width, arguments.batch, dtype)
            took = {name: median(times) for name, times in timed(passes, arguments.rounds).items()}
            report(took, rows, gigabytes, f"{arguments.batch} x {arguments.width} {dtype}")
    print(f"({arguments.threads} threads)")


def timed(passes: dict[str, Callable[[], Batches]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every pass, round by round; before that, that all of them read the same."""
    expected = sum(float(batch[0, 0]) for batch in passes["np.memmap"]())
    for name, make in passes.items():
        if "random" not in name and "epoch" not in name:
            assert sum(float(batch[0, 0]) for batch in make()) == expected, name
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, make in passes.items():
            start = perf_counter()
            for _ in make():  # as in a training loop, one batch is held while the next is made
                pass
            seconds[name].append(perf_counter() - start)
    return seconds


def report(took: dict[str, float], rows: int, gigabytes: float, batches: str) -> None:
    print(f"{rows} rows, stored as float16, in batches of {batches}")
    for name, time in took.items():
        print(f"  {name:28} {gigabytes / time:6.2f} GB/s  {rows / time / 1e6:6.2f} M rows/s")
    print("  ratios of rows per second:")
    for name, other in (
        ("saecache, checked", "np.memmap"),
        ("saecache, again", "np.memmap"),
        ("saecache, later epoch", "np.memmap, rows at random"),
        ("saecache, checked", "zarr-python"),
        ("saecache, again", "zarr-python"),
        ("saecache, again", "tensorstore"),
    ):
        if other in took:
            print(f"    {name:22} / {other:26} {took[other] / took[name]:6.2f}")


if __name__ == "__main__":
    main()
