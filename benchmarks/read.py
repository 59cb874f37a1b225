"""Training batches from a cache against np.memmap of the same bytes, zarr-python and tensorstore.

    python benchmarks/read.py [--quick] [--mib N] [--width D] [--batch B] [--rounds R] [--folder DIR]

Every reader ends with torch [B, D] batches of its own of the same rows: float16 as stored, then float32 as a
training step wants them. The readers take turns. The files are in the system's file cache, as in a training
run whose data fit in memory. ``checked`` opens the cache anew, so that every chunk is checked against its
crc32c; ``again`` is a later pass of the same process. Processor time says
the same on a machine that others use too.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shared.measuring import Cost, Report, parser, ratios, take_turns, timed

from saecache.store import CacheWriter, StorageConfig, open_cache

HOOK = "h"
Batches = Iterator[torch.Tensor]
COMPARED = (
    ("saecache, checked", "np.memmap"),
    ("saecache, again", "np.memmap"),
    ("saecache, later epoch", "np.memmap, rows at random"),
    ("saecache, checked", "zarr-python"),
    ("saecache, again", "zarr-python"),
    ("saecache, again", "tensorstore"),
)


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
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=512, help="size of the stored rows")
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--batch", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    settings = options.parse_args()
    if settings.quick:
        settings.mib, settings.rounds = 64, 3
    torch.set_num_threads(settings.threads)
    rows = (settings.mib << 20) // (2 * settings.width)
    size = f"{rows:,} rows of {settings.width} float16 in batches of {settings.batch}"
    report = Report("read", settings, f"{size}, {settings.threads} threads")
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        write_cache(folder / "cache", rows, settings.width)
        stored = open_cache(folder / "cache")
        with (folder / "raw").open("wb") as file:
            for batch in stored.batches(HOOK, 4096, dtype=torch.float16):
                file.write(batch.numpy().data)
        for dtype in (torch.float16, torch.float32):
            passes = readers(folder, rows, settings.width, settings.batch, dtype)
            check_that_all_read_the_same(passes)
            turns = {name: partial(one_pass, make) for name, make in passes.items()}
            costs = take_turns(turns, settings.rounds, warm_up=0)
            add_figures(report, costs, rows, "as stored" if dtype == torch.float16 else "as float32")
    report.save()


def one_pass(make: Callable[[], Batches]) -> Cost:
    """As in a training loop, one batch is held while the next is made."""
    return timed(lambda: deque(make(), maxlen=1))


def check_that_all_read_the_same(passes: dict[str, Callable[[], Batches]]) -> None:
    """Compares the first number of every batch. It also brings the files into the system's file cache."""
    expected = sum(float(batch[0, 0]) for batch in passes["np.memmap"]())
    for name, make in passes.items():
        if "random" not in name and "epoch" not in name:
            assert sum(float(batch[0, 0]) for batch in make()) == expected, name


def add_figures(report: Report, costs: dict[str, list[Cost]], rows: int, how: str) -> None:
    for name, found in costs.items():
        report.add(name, (rows / 1e6 / cost.seconds for cost in found), "M rows/s", f"batches {how}: speed")
    for i, of in enumerate(("ratio of speeds", "ratio of rows per second of processor time")):
        for name, other in COMPARED:
            if other in costs:
                faster = ratios([cost[i] for cost in costs[other]], [cost[i] for cost in costs[name]])
                report.add(f"{name} / {other}", faster, group=f"batches {how}: {of}")


if __name__ == "__main__":
    main()
