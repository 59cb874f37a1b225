"""The temporary cache that is written, and then read: rows of random numbers at one hook."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...store import CacheWriter, StorageConfig
from ...store.disk_space import free_space
from ..config import Sizes

HOOK = "rows"
CALL_ROWS = 8192  # rows in each call of the writer, about one forward
DISK_SHARE = 4  # at most one of so many of the free bytes for a cache; it is there twice while it is written


def cache_rows(sizes: Sizes, folder: Path) -> int:
    """The rows of a cache of ``sizes.cache_mib``, or of as much as the disk of ``folder`` has room for."""
    _, free = free_space(folder)
    whole_batch = max(sizes.rows, CALL_ROWS)
    rows = min(sizes.cache_mib << 20, free // DISK_SHARE) // (2 * sizes.width)
    return max(whole_batch, rows // whole_batch * whole_batch)


def blocks(rows: int, width: int) -> Iterator[NDArray[np.float32]]:
    """Rows in the pieces in which a harvest hands them to the writer: float32 [n, D]."""
    x = np.random.default_rng(0).normal(size=(CALL_ROWS, width)).astype(np.float32)
    for start in range(0, rows, len(x)):
        yield x[: rows - start]


def write_cache(path: Path, rows: int, width: int) -> None:
    """Write a finished cache of ``rows`` rows."""
    writer = CacheWriter(
        path, hooks={HOOK: width}, identity={}, storage=StorageConfig(), planned_sequences=rows
    )
    with writer:
        for block in blocks(rows, width):
            writer.write_rows({HOOK: block})


def ensure_cache(path: Path, rows: int, width: int) -> Path:
    """``path``, with a cache of ``rows`` rows in it unless one is there."""
    if not (path / "zarr.json").is_file():
        write_cache(path, rows, width)
    return path
