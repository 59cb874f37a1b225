"""Rows that were not committed go from memory into the finished arrays."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.store import (
    BadActivationError,
    CacheWriter,
    CorruptCacheError,
    StorageConfig,
    inspect_output,
    open_cache,
)
from saecache.store.writing import unfinished
from saecache.store.writing.spill import SpillWriter
from saecache.store.writing.unfinished import UnfinishedCache

STORAGE = StorageConfig(chunk_rows=64, shard_bytes=8192, memory_bytes=1 << 20)
Contents = Callable[[Path], dict[str, bytes]]


class StopError(Exception):
    pass


def writer_of(path: Path, source: Any, **changes: Any) -> CacheWriter:
    settings = {"identity": {"source": "test"}, "heldout_fraction": 0.2, "storage": STORAGE} | changes
    return CacheWriter(path, hooks=source.hooks, context=source.context, **settings)


def stop_half_way(done: int, total: int) -> None:
    if done > total / 2:
        raise StopError


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each block that is given to the spill."""
    rows: list[int] = []
    append = SpillWriter._append_block

    def counted(self: SpillWriter, block: Any) -> None:
        rows.append(block.used)
        append(self, block)

    monkeypatch.setattr(SpillWriter, "_append_block", counted)
    return rows


def test_a_small_cache_is_never_spilled(
    tmp_path: Path, cache_path: Path, source: Any, spilled: list[int], contents: Contents
) -> None:
    with writer_of(tmp_path / "c", source) as writer:
        for _, arrays in source.batches(7):
            writer.write_sequences(**arrays)
        writer.finalize(commit_first=False)
    assert spilled == []
    assert contents(tmp_path / "c") == contents(cache_path)


def test_the_last_rows_of_a_larger_cache_are_not_spilled(
    tmp_path: Path, make_source: Callable[..., Any], spilled: list[int], contents: Contents
) -> None:
    source = make_source(sequences=200, hooks={"wide": 300})
    for name, commits in (("spilled", True), ("partly", False)):
        spilled.clear()
        with writer_of(tmp_path / name, source) as writer:
            for _, arrays in source.batches(7):
                writer.write_sequences(**arrays)
            writer.finalize(commit_first=commits)
        rows = len(open_cache(tmp_path / name)) + open_cache(tmp_path / name).num_rows("heldout")
        assert sum(spilled) == rows if commits else 0 < sum(spilled) < rows
    assert contents(tmp_path / "partly") == contents(tmp_path / "spilled")


def test_after_an_error_in_finalize_nothing_is_lost(
    tmp_path: Path, cache_path: Path, source: Any, contents: Contents
) -> None:
    writer = writer_of(tmp_path / "c", source)
    for _, arrays in source.batches(10):
        writer.write_sequences(**arrays)
    with pytest.raises(StopError):
        writer.finalize(on_progress=stop_half_way, commit_first=False)
    writer.close()
    writer = writer_of(tmp_path / "c", source)
    assert writer.sequences_done == len(source.ids)
    writer.finalize()
    assert contents(tmp_path / "c") == contents(cache_path)


@pytest.mark.parametrize("commits", [True, False], ids=["after a commit", "without a commit"])
def test_a_killed_finalize_loses_no_rows(
    tmp_path: Path, cache_path: Path, source: Any, contents: Contents, commits: bool
) -> None:
    """Whoever starts it again need not write anything more, and gets the whole cache, not a smaller one."""
    script = f"""
import os, pickle, sys
from saecache.store import CacheWriter
arguments, batches, commits = pickle.load(sys.stdin.buffer)
writer = CacheWriter({str(tmp_path / "c")!r}, **arguments)
for number, arrays in enumerate(batches):
    writer.write_sequences(**arrays)
    if commits and number == 1:
        writer.commit()
writer.finalize(on_progress=lambda done, total: os._exit(9) if done > total / 2 else None)
"""
    arguments = {"hooks": source.hooks, "context": source.context, "identity": {"source": "test"}}
    arguments |= {"heldout_fraction": 0.2, "storage": STORAGE}
    given = pickle.dumps((arguments, [arrays for _, arrays in source.batches(10)], commits))
    assert subprocess.run([sys.executable, "-c", script], input=given, check=False).returncode == 9
    with writer_of(tmp_path / "c", source) as writer:
        assert writer.sequences_done == len(source.ids)
    assert contents(tmp_path / "c") == contents(cache_path)


def test_a_killed_finalize_leaves_no_results_of_rows_that_were_lost(
    tmp_path: Path, source: Any, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards that it finished have records, and many have the size of those of a smaller cache."""
    batches = [arrays for _, arrays in source.batches(10)]
    for name in ("killed", "expected"):
        writer = writer_of(tmp_path / name, source)
        for arrays in batches[:4]:
            writer.write_sequences(**arrays)
        writer.commit()
        if name == "killed":
            for arrays in batches[4:]:
                writer.write_sequences(**arrays)
            with monkeypatch.context() as patch, pytest.raises(StopError):
                patch.setattr(UnfinishedCache, "make_durable", lambda self: None)  # as a killed process
                writer.finalize(on_progress=stop_half_way, commit_first=False)
            assert len(list((tmp_path / name / ".writing" / "done").iterdir())) > 3
            writer.close()
            writer = writer_of(tmp_path / name, source)
            assert writer.sequences_done == 40
        writer.finalize()
    assert contents(tmp_path / "killed") == contents(tmp_path / "expected")


def test_killed_between_the_manifest_and_its_cleaning(
    tmp_path: Path, cache_path: Path, source: Any, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal does not know of the rows that were never committed; the manifest does."""

    def killed(*_: object) -> None:
        raise StopError

    writer = writer_of(tmp_path / "c", source)
    for _, arrays in source.batches(10):
        writer.write_sequences(**arrays)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(unfinished, "remove_work", killed)
        writer.finalize(commit_first=False)
    writer.close()
    assert inspect_output(tmp_path / "c") == "incomplete"
    with writer_of(tmp_path / "c", source) as writer:
        assert writer.sequences_done == len(source.ids)
    assert inspect_output(tmp_path / "c") == "complete"
    assert contents(tmp_path / "c") == contents(cache_path)


def test_a_folder_in_place_of_the_mark(tmp_path: Path, source: Any) -> None:
    writer = writer_of(tmp_path / "c", source)
    writer.write_sequences(**next(iter(source.batches(10)))[1])
    writer.commit()
    writer.close()
    (tmp_path / "c" / ".writing" / "uncommitted").mkdir()
    with pytest.raises(CorruptCacheError, match="uncommitted is not a file: remove it"):
        writer_of(tmp_path / "c", source)


def test_a_bad_row_is_found_in_whichever_thread(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5000, 6)).astype(np.float32)
    x[[3333, 4444], 2] = np.nan
    with (
        pytest.raises(BadActivationError, match="sequence 3333,"),
        CacheWriter(tmp_path / "c", hooks={"h": 6}, identity={}, storage=STORAGE) as writer,
    ):
        writer.write_rows({"h": x})
