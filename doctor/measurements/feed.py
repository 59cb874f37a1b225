"""Training batches from a cache against ``np.memmap`` of the same bytes, and on a GPU against a bare copy.

Every way ends with float32 [B, D] batches of its own on the device. The files are in the system's file cache,
as in a run whose data fit in memory.
"""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ...store import open_cache
from ..config import Sizes
from ..notes import Notes
from ..timing import ratios, take_turns, timed, waiting_for
from .caches import HOOK, cache_rows, ensure_cache

Batches = Iterator[torch.Tensor]
LIMITS = {  # a way -> what limits it
    "cache, first pass, each chunk checked": "np.memmap",
    "cache, again": "np.memmap",
    "cache, later epoch": "np.memmap, rows at random",
}
COPY = "copies of float16 batches from pinned memory"


def measure_feed(notes: Notes, sizes: Sizes, device: torch.device, folder: Path) -> None:
    """The section ``feed``."""
    rows = cache_rows(sizes, folder)
    notes.say(f"feed: {rows:,} rows of {sizes.width}")
    with notes.attempt("reading a cache"):
        path = ensure_cache(folder / "cache", rows, sizes.width)
        write_raw(path, folder / "raw", sizes.rows)
        ways = make_ways(path, folder / "raw", sizes, device)
        wait = waiting_for(device)
        turns = {
            name: lambda make=make: timed(lambda: deque(make(), maxlen=1), wait)
            for name, make in ways.items()
        }
        costs = take_turns(turns, sizes.rounds, time_left=notes.time_left)
        seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
        group = f"feed: batches of {sizes.rows:,} rows of {sizes.width}, float32 on {device}"
        for name, taken in seconds.items():
            notes.measure(group, name, "rows/s", [rows / s for s in taken])
        limits = [*LIMITS.items(), *((name, COPY) for name in LIMITS if COPY in seconds)]
        for name, limit in limits:
            notes.measure(group, f"{name} / {limit}", "", ratios(seconds[limit], seconds[name]))
    (folder / "raw").unlink(missing_ok=True)


def write_raw(cache: Path, raw: Path, batch: int) -> None:
    """The stored rows of ``cache`` as one plain file; this also brings the cache into the file cache."""
    with raw.open("wb") as file:
        for rows in open_cache(cache).batches(HOOK, batch, dtype=torch.float16):
            file.write(rows.numpy().data)


def make_ways(path: Path, raw: Path, sizes: Sizes, device: torch.device) -> dict[str, Callable[[], Batches]]:
    """Name -> a pass over all rows."""
    cache, batch = open_cache(path), sizes.rows
    rows = len(cache)
    stored = np.memmap(raw, dtype=np.float16, mode="c", shape=(rows, sizes.width))
    order = np.random.default_rng(0).permutation(rows)

    def from_memmap() -> Batches:
        for start in range(0, rows, batch):
            yield torch.from_numpy(stored[start : start + batch]).to(device, torch.float32, copy=True)

    def at_random() -> Batches:
        for start in range(0, rows, batch):
            yield torch.from_numpy(stored[order[start : start + batch]]).to(device, torch.float32)

    def copies() -> Batches:
        pinned = torch.from_numpy(stored[:batch].copy()).pin_memory()
        for start in range(0, rows, batch):
            yield pinned[: rows - start].to(device, non_blocking=True).float()

    ways: dict[str, Callable[[], Batches]] = {
        "np.memmap": from_memmap,
        "np.memmap, rows at random": at_random,
        "cache, first pass, each chunk checked": lambda: open_cache(path).batches(HOOK, batch, device=device),
        "cache, again": lambda: cache.batches(HOOK, batch, device=device),
        "cache, later epoch": lambda: cache.batches(HOOK, batch, epoch=1, device=device),
    }
    return ways | ({COPY: copies} if device.type == "cuda" else {})
