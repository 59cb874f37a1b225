"""Planned sizes against real ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saecache.store import StorageConfig, UsageError, check_disk_space, plan_size
from saecache.store.writing.planned_size import PlannedSize


@pytest.mark.parametrize("heldout_fraction", [0.0, 0.3])
def test_the_plan_is_never_too_small_and_hardly_too_large(
    tmp_path: Path,
    make_source: Callable[..., Any],
    write_cache: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    heldout_fraction: float,
) -> None:
    source = make_source(sequences=300, hooks={"a": 64, "b": 30})
    source.keep[:] = True
    source = type(source)(
        source.ids, source.documents, source.keep, make_source(sequences=400, hooks=source.hooks).activations
    )
    rows = int(source.keep.sum())
    for hook in source.activations:
        source.activations[hook] = source.activations[hook][:rows]
    storage = {"chunk_rows": 64, "shard_bytes": 1 << 16}
    planned = plan_size(source.hooks, source.context, 300, StorageConfig(**storage))

    peak = 0

    def measure(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, sum(size_of(file) for file in tmp_path.rglob("*")))

    monkeypatch.setattr("saecache.store.writing.unfinished.Finalizer", _measuring(measure))
    manifest = write_cache(tmp_path / "c", source, storage=storage, heldout_fraction=heldout_fraction)
    final = sum(file.size for file in manifest.files)
    assert final <= planned.final_bytes < final * 1.15
    assert peak <= planned.peak_bytes * 1.02 + 100_000  # metadata, journal, records of finished shards
    assert planned.peak_bytes < peak * 1.15


def size_of(path: Path) -> int:
    """0 of what is no file, and of a temporary file that another thread has renamed meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _measuring(measure: Callable[[int, int], None]) -> Any:
    from saecache.store.writing.finalize import Finalizer

    def make(*arguments: Any, **settings: Any) -> Any:
        return Finalizer(*arguments, **(settings | {"on_progress": measure}))

    return make


def test_more_shards_than_a_manifest_can_list_are_refused_before_the_work() -> None:
    storage = StorageConfig(chunk_rows=16, shard_bytes=1 << 16)
    with pytest.raises(UsageError, match=r"set storage.shard_bytes to ([0-9,]+) or more") as caught:
        plan_size({"h": 1024}, 1024, 10**6, storage)
    wanted = int(str(caught.value).split("shard_bytes to ")[1].split()[0].replace(",", ""))
    enough = storage.model_copy(update={"shard_bytes": wanted * 21 // 20})  # whole chunks: a little more
    plan_size({"h": 1024}, 1024, 10**6, enough)


def test_planning_does_not_need_the_cache(tmp_path: Path) -> None:
    huge = plan_size({"h": 4096}, 1024, 10**8, StorageConfig(shard_bytes=4 << 30))
    assert huge.final_bytes == pytest.approx(10**8 * 1024 * (4096 * 2 + 8 + 8 + 8), rel=0.01)
    assert huge.peak_bytes == pytest.approx(2 * huge.final_bytes, rel=0.01)


def test_no_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 30))
    planned = PlannedSize(final_bytes=6 << 30, peak_bytes=12 << 30)
    with pytest.raises(UsageError, match=r"needs 12 GiB while it is written \(6 GiB when finished\), 10 GiB"):
        check_disk_space(tmp_path / "not" / "yet" / "there", planned)
    check_disk_space(tmp_path, planned, already_bytes=3 << 30)
    assert not (tmp_path / "not").exists()
