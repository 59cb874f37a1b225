"""A damaged local copy that one thread throws away while another one is opening it."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from saecache.store.manifest_file import load_manifest
from saecache.store.reading.sharded_array import ShardedArray

from ...killing import DEADLINE_SECONDS


class TwoCopies:
    """Files of an array: of the damaged copy, until it is discarded."""

    def __init__(self, damaged: Path, good: Path) -> None:
        self.damaged, self.good, self.discarded = damaged, good, False

    def hold(self, name: str, let_go: Callable[[], None]) -> Any:
        return SimpleNamespace(path=(self.good if self.discarded else self.damaged) / name, verified=False)

    def discard(self, name: str) -> bool:
        self.discarded = True
        return True


def test_a_discarded_copy_does_not_come_back(cache_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(cache_path, damaged)
    arrays = load_manifest(cache_path).layout.arrays()
    spec = next(array for array in arrays if array.path == "rows/resid_post.1/activations")
    shard = damaged / spec.shard_path(0)
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)

    array = ShardedArray("cache", spec, files=TwoCopies(damaged, cache_path))
    mapped, forgotten, opened, done = (threading.Event() for _ in range(4))
    shards = array._shards
    map_shard, open_shard, forget = shards._map, shards.get, shards.forget

    def slow_map(number: int) -> Any:
        found = map_shard(number)
        if threading.current_thread() is other and not mapped.is_set():
            mapped.set()
            assert forgotten.wait(DEADLINE_SECONDS)
        return found

    def slow_open(number: int) -> Any:
        found = open_shard(number)
        if threading.current_thread() is other and not opened.is_set():
            opened.set()
            assert done.wait(DEADLINE_SECONDS)
        return found

    def watched_forget(number: int) -> None:
        forget(number)
        if threading.current_thread() is not other:
            forgotten.set()
            assert opened.wait(DEADLINE_SECONDS)

    shards._map, shards.get, shards.forget = slow_map, slow_open, watched_forget  # type: ignore[method-assign]
    read: list[Any] = []
    other = threading.Thread(target=lambda: read.append(array.chunk(0).copy()))
    other.start()
    assert mapped.wait(
        DEADLINE_SECONDS
    )  # it has the damaged copy, and goes on once this thread has thrown that away
    expected = ShardedArray(cache_path, spec).chunk(0)
    try:
        assert np.array_equal(array.chunk(0), expected)
    finally:
        done.set()
        other.join(DEADLINE_SECONDS)
    assert np.array_equal(read[0], expected)
