"""The stages of writing, one at a time: rows per second on one core, and on more.

Each stage runs in one thread, and then in one thread on each core, which is pinned to it. What the threads do
together is compared with what one does, so that a stage that the memory or the interpreter lock limits shows.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from saecache.store.encoding.checksum import crc32c
from saecache.store.encoding.encode import encode_rows
from saecache.store.encoding.records import RecordLayout
from saecache.store.encoding.stored_rows import StoredRows
from saecache.store.statistics import add_moments

ROWS = 8192
_PIECE_ROWS = 1024
Work = Callable[[], object]


def pin(cores: list[int]) -> None:
    """Let the calling thread, and those that it starts, run on these cores only, where that can be asked."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, cores)


class Stages:
    """Data of one thread: ``ROWS`` rows of ``width`` in every form that they take."""

    def __init__(self, width: int, folder: Path) -> None:
        self._layout = RecordLayout(width, "float16")
        rng = np.random.default_rng(0)
        self._x = rng.normal(size=(ROWS, width)).astype(np.float32)
        self._records = np.zeros((ROWS, self._layout.record_bytes), np.uint8)
        self._order = rng.permutation(ROWS)
        self._rows = StoredRows.empty(self._layout, ROWS)
        self._bytes = self._rows.words.reshape(-1).view(np.uint8)
        self._sums = np.zeros((2, width))
        self._folder = folder
        self._encode()
        self._gather()

    def works(self) -> Mapping[str, Work]:
        return {
            "encode": self._encode,
            "spill": self._spill,
            "gather": self._gather,
            "moments": lambda: add_moments(
                self._rows.words, self._rows.norm, self._rows.mean, True, self._sums
            ),
            "crc32c": lambda: crc32c(self._bytes),
            "sha256": lambda: hashlib.sha256(self._bytes.data).digest(),
            "write": lambda: self._write(self._bytes),
        }

    def _encode(self) -> None:
        for start in range(0, ROWS, _PIECE_ROWS):
            rows = slice(start, start + _PIECE_ROWS)
            encode_rows(self._x[rows], self._records[rows], self._layout, True)

    def _spill(self) -> None:
        """Records into the order of their buckets, and into a file."""
        self._write(self._records.take(self._order, axis=0))

    def _gather(self) -> None:
        self._rows.place(self._records, self._order, np.arange(ROWS))

    def _write(self, content: np.ndarray) -> None:
        """Into the system's file cache: the disk is left out."""
        with (self._folder / str(threading.get_ident())).open("wb", buffering=0) as file:
            file.write(content.data)


def seconds_for_rows(width: int, folder: Path, cores: list[int], rounds: int) -> dict[str, list[float]]:
    """Stage -> for each round, the seconds in which one thread on each of ``cores`` does ``ROWS`` rows."""
    names = list(Stages(width, folder).works())
    taken: dict[str, list[float]] = {name: [] for name in names}
    barrier = threading.Barrier(len(cores) + 1)

    def run(core: int) -> None:
        pin([core])
        works = Stages(width, folder).works()
        for _ in range(rounds):
            for name in names:
                barrier.wait()
                works[name]()
                barrier.wait()

    threads = [threading.Thread(target=run, args=(core,)) for core in cores]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        for name in names:
            barrier.wait()
            started = time.perf_counter()
            barrier.wait()
            taken[name].append(time.perf_counter() - started)
    for thread in threads:
        thread.join()
    return taken
