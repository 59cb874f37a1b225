"""``kill -9`` at any moment, then the same again: the same bytes as without it."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saecache.store import inspect_output, open_cache, verify_cache

Run = Callable[..., dict[str, Any]]
BATCH, COMMIT_EVERY = 20, 2
LONG = bool(os.environ.get("SAECACHE_LONG_TESTS"))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Writes the cache ``path`` in a process of its own, killed as asked for."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("crash_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout

    def run(
        path: Path, *, batch: int = BATCH, commit_every: int = COMMIT_EVERY, **more: Any
    ) -> dict[str, Any]:
        request = {"path": str(path), "batch": batch, "commit_every": commit_every, **more}
        print(json.dumps(request), file=server.stdin, flush=True)
        answer: dict[str, Any] = json.loads(server.stdout.readline())
        return answer

    with server:
        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, int]:
    """An uninterrupted cache, and how many changes of the file system it took."""
    path = tmp_path_factory.mktemp("reference") / "cache"
    done = run(path)
    assert done["status"] == 0
    return path, done["changes"]


def check(path: Path, reference: Path, contents: Callable[..., Any]) -> None:
    assert inspect_output(path) == "complete"
    assert contents(path) == contents(reference)


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


def test_merging_killed_at_any_change_of_the_file_system(
    tmp_path: Path, run: Run, make_source: Callable[..., Any], write_cache: Callable[..., Any], contents: Any
) -> None:
    """Slices, conversions and extended caches are written by the same copy of rows."""
    sources = [str(tmp_path / name) for name in "ab"]
    for seed, path in enumerate(sources):
        write_cache(Path(path), make_source(30, hooks={"a": 24}, seed=seed), identity={"text": path[-1]})
    whole = run(tmp_path / "whole", merge=sources)
    assert whole["status"] == 0 and whole["changes"] > 100
    for kill_at in random.Random(2).sample(range(1, whole["changes"]), 50 if LONG else 14):
        path = tmp_path / str(kill_at)
        assert run(path, merge=sources, kill_at=kill_at)["status"] == -signal.SIGKILL
        assert run(path, merge=sources)["status"] == 0
        check(path, tmp_path / "whole", contents)
    path = tmp_path / "again and again"
    deaths = 0
    for kill_at in range(12, 4 * whole["changes"], 20):
        if run(path, merge=sources, kill_at=kill_at)["status"] == 0:
            break
        deaths += 1
    assert deaths > 3
    check(path, tmp_path / "whole", contents)
    assert verify_cache(path).ok
