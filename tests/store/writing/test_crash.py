"""``kill -9`` at any moment, then the same again: the same bytes as without it."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import inspect_output, open_cache, verify_cache

from ..crash import Run, check


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, int]:
    """An uninterrupted cache, and how many changes of the file system it took."""
    path = tmp_path_factory.mktemp("reference") / "cache"
    done = run(path)
    assert done["status"] == 0
    return path, done["changes"]


def test_killed_at_any_change_of_the_file_system(
    tmp_path: Path, run: Run, reference: tuple[Path, int], contents: Callable[..., Any]
) -> None:
    whole, changes = reference
    assert changes > 100
    beginning_and_end = [*range(1, 6), *range(changes - 12, changes + 1)]
    between = random.Random(0).sample(range(6, changes - 12), 14)
    for kill_at in sorted(beginning_and_end + between):
        path = tmp_path / str(kill_at)
        assert run(path, kill_at=kill_at)["status"] == -signal.SIGKILL
        if inspect_output(path) == "complete":  # the last change of all: nothing is left to do
            assert kill_at >= changes - 2
        else:
            assert run(path, batch=20 if kill_at % 2 else 7)["status"] == 0
        check(path, whole, contents)


def test_killed_without_a_commit(
    tmp_path: Path, run: Run, reference: tuple[Path, int], contents: Callable[..., Any]
) -> None:
    """All rows are in memory until the shards are there."""
    whole, _ = reference
    changes = run(tmp_path / "not killed", commit_every=None)["changes"]
    check(tmp_path / "not killed", whole, contents)
    between = random.Random(2).sample(range(6, changes - 8), 8)
    for kill_at in sorted([*between, *range(changes - 8, changes + 1)]):
        path = tmp_path / str(kill_at)
        assert run(path, kill_at=kill_at, commit_every=None)["status"] == -signal.SIGKILL
        if inspect_output(path) != "complete":
            assert run(path, commit_every=None)["status"] == 0
        check(path, whole, contents)


def test_killed_again_and_again(
    tmp_path: Path, run: Run, reference: tuple[Path, int], contents: Callable[..., Any]
) -> None:
    """Every run dies a little later than the one before would have: progress survives each."""
    whole, changes = reference
    path = tmp_path / "cache"
    deaths = 0
    for kill_at in range(15, 4 * changes, 12):
        if run(path, kill_at=kill_at)["status"] == 0:
            break
        deaths += 1
    assert deaths > 3
    check(path, whole, contents)
    assert verify_cache(path).ok


def test_killed_by_the_clock(
    tmp_path: Path, run: Run, reference: tuple[Path, int], contents: Callable[..., Any]
) -> None:
    whole, _ = reference
    path, clock = tmp_path / "cache", random.Random(1)
    for _ in range(5):
        run(path, kill_after=clock.uniform(0.02, 0.4))
        if inspect_output(path) == "complete":
            path = tmp_path / f"cache{clock.random()}"
    if inspect_output(path) != "complete":
        assert run(path)["status"] == 0
    check(path, whole, contents)


def test_a_cache_that_only_lacks_its_cleaning_can_be_read(
    tmp_path: Path, run: Run, reference: tuple[Path, int]
) -> None:
    whole, changes = reference
    for back in range(1, 40):
        path = tmp_path / str(back)
        run(path, kill_at=changes - back)
        if (path / "zarr.json").is_file() and inspect_output(path) == "incomplete":
            assert open_cache(path).fingerprint == open_cache(whole).fingerprint
            return
    pytest.fail("no moment between manifest and cleaning was met")
