"""Writing a cache, from raw rows to the finished folder, against a plain write of the same bytes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..config import Sizes
from ..notes import Notes
from ..timing import Cost, ratios, take_turns, timed
from .caches import blocks, cache_rows, write_cache


def measure_writer(notes: Notes, sizes: Sizes, folder: Path) -> None:
    """The section ``writer``. It leaves the last cache in ``folder / "cache"`` for the feed."""
    rows, width = cache_rows(sizes, folder), sizes.width
    cache, plain = folder / "cache", folder / "plain"

    def clean(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def written(path: Path, write: Callable[[], None]) -> Callable[[], Cost]:
        def once() -> Cost:
            clean(path)
            return timed(write)

        return once

    ways = {
        "plain": written(plain, lambda: write_plain(plain, rows, width)),
        "cache": written(cache, lambda: write_cache(cache, rows, width)),
    }
    notes.say(f"writer: {rows:,} rows of {width}")
    with notes.attempt("writing a cache"):
        costs = take_turns(ways, sizes.rounds, time_left=notes.time_left)
        seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
        group = f"writer: {rows:,} rows of {width} in float16"
        notes.measure(
            group, "write_rows to the finished cache", "rows/s", [rows / s for s in seconds["cache"]]
        )
        notes.measure(
            group, "plain sequential write of the same bytes", "rows/s", [rows / s for s in seconds["plain"]]
        )
        faster = ratios(seconds["plain"], seconds["cache"])
        notes.measure(group, "write_rows / plain write", "", faster)
    clean(plain)


def write_plain(path: Path, rows: int, width: int) -> None:
    """The bytes of the stored rows, one after the other, until they are durable."""
    with path.open("wb", buffering=0) as file:
        for block in blocks(rows, width):
            file.write(block.astype("float16").data)
        os.fsync(file.fileno())
