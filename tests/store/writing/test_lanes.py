"""Shards that are written side by side have the bytes of shards that are written one after the other."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CacheWriter, StorageConfig
from saecache.store.writing import lanes
from saecache.store.writing.shard_units import ShardUnits

STORAGE = StorageConfig(chunk_rows=64, shard_bytes=8192, memory_bytes=32 << 20)


class StopError(Exception):
    pass


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that write shards of rows, one entry for each shard. Three lanes fit on nine cores."""
    monkeypatch.setattr(lanes, "usable_cores", lambda: list(range(9)))
    names: list[str] = []
    rows = ShardUnits._rows

    def named(self: ShardUnits, *arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return rows(self, *arguments)

    monkeypatch.setattr(ShardUnits, "_rows", named)
    return names


def write(path: Path, source: Any, *, commit: bool = False, on_progress: Any = None) -> None:
    with CacheWriter(
        path,
        hooks=source.hooks,
        context=source.context,
        identity={"source": "test"},
        heldout_fraction=0.2,
        storage=STORAGE,
    ) as writer:
        for start, arrays in source.batches(7):
            if start >= writer.sequences_done:
                writer.write_sequences(**arrays)
                if commit:
                    writer.commit()
        writer.finalize(on_progress=on_progress)


@pytest.mark.parametrize("commit", [False, True])
def test_lanes_write_the_same_cache(
    commit: bool, tmp_path: Path, make_source: Callable[..., Any], writers: list[str], contents: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = make_source(sequences=200)
    write(tmp_path / "lanes", source, commit=commit)
    assert len(set(writers)) == 3
    writers.clear()
    monkeypatch.setattr(lanes, "usable_cores", lambda: [0, 1])
    write(tmp_path / "alone", source)
    assert len(set(writers)) == 1
    assert contents(tmp_path / "lanes") == contents(tmp_path / "alone")


def test_what_lanes_had_finished_is_not_written_again(
    tmp_path: Path, make_source: Callable[..., Any], writers: list[str], contents: Any
) -> None:
    source = make_source(sequences=200)
    write(tmp_path / "whole", source)
    all_shards = len(writers)
    writers.clear()

    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise StopError

    with pytest.raises(StopError):
        write(tmp_path / "stopped", source, commit=True, on_progress=stop_half_way)
    assert 0 < len(writers) < all_shards
    recorded = [json.loads(path.read_text()) for path in (tmp_path / "stopped").rglob("done/*hook*.json")]
    assert recorded
    writers.clear()
    write(tmp_path / "stopped", source)
    assert len(writers) == all_shards - len(recorded)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("cores", "shards", "limit", "lane", "expected"),
    [
        (2, 99, 100, 1, 1),
        (16, 99, 100, 1, 5),
        (16, 2, 100, 1, 2),
        (16, 99, 100, 40, 2),
        (16, 99, 100, 200, 1),
    ],
)
def test_there_are_as_many_lanes_as_cores_shards_and_memory_allow(
    cores: int, shards: int, limit: int, lane: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "usable_cores", lambda: list(range(cores)))
    assert lanes.choose_lanes(shards, limit, lane) == expected
