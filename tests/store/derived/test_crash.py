"""``kill -9`` of merge, slice and convert at any moment, then the same again: the same bytes."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import inspect_output, verify_cache

from ..crash import Run, check

KILLS = 50 if os.environ.get("SAECACHE_LONG_TESTS") else 6
COMMANDS: dict[str, dict[str, Any]] = {
    "merge": {"derive": "merge", "how": {}},
    "slice": {"derive": "slice", "how": {"hooks": ["a"], "rows": 200, "heldout_rows": 20}},
    "convert": {"derive": "convert", "how": {"dtype": "int8", "codec": "zstd"}},
}


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, make_source: Callable[..., Any], write_cache: Callable[..., Any]
) -> list[str]:
    """Two caches of different texts: slice and convert take the first."""
    paths = [tmp_path_factory.mktemp("sources") / name for name in "ab"]
    for seed, path in enumerate(paths):
        write_cache(path, make_source(30, hooks={"a": 24, "b": 8}, seed=seed), identity={"text": path.name})
    return list(map(str, paths))


@pytest.fixture(scope="module", params=COMMANDS)
def command(request: pytest.FixtureRequest, sources: list[str]) -> dict[str, Any]:
    taken = sources if request.param == "merge" else sources[:1]
    return {"from": taken, **COMMANDS[request.param]}


@pytest.fixture(scope="module")
def reference(
    command: dict[str, Any], run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """What the command makes uninterrupted, and how many changes of the file system it takes."""
    folder = tmp_path_factory.mktemp("reference")
    run(folder / "warm", **command)  # the first process of all compiles kernels, and keeps them in files
    done = run(folder / "whole", **command)
    assert done["status"] == 0 and done["changes"] > 60
    return folder / "whole", done["changes"]


def test_killed_at_any_change_of_the_file_system(
    command: dict[str, Any], reference: tuple[Path, int], tmp_path: Path, run: Run, contents: Any
) -> None:
    whole, changes = reference
    last = [changes - back for back in (1, 3, 6)]
    for kill_at in [*random.Random(2).sample(range(1, last[-1]), KILLS), *last]:
        path = tmp_path / str(kill_at)
        assert run(path, kill_at=kill_at, **command)["status"] == -signal.SIGKILL
        if inspect_output(path) != "complete":
            assert run(path, **command)["status"] == 0
        check(path, whole, contents)


def test_killed_again_and_again(
    command: dict[str, Any], reference: tuple[Path, int], tmp_path: Path, run: Run, contents: Any
) -> None:
    """Every run dies a little later than the one before would have: progress survives each."""
    whole, changes = reference
    path, deaths, step = tmp_path / "again", 0, changes // 7
    for kill_at in range(step, 4 * changes, step):
        if run(path, kill_at=kill_at, **command)["status"] == 0:
            break
        deaths += 1
    assert deaths >= 3
    check(path, whole, contents)
    assert verify_cache(path).ok


def test_killed_by_the_clock(
    command: dict[str, Any], reference: tuple[Path, int], tmp_path: Path, run: Run, contents: Any
) -> None:
    whole, _ = reference
    path, clock = tmp_path / "0", random.Random(3)
    for number in range(1, 1 + KILLS // 3):
        run(path, kill_after=clock.uniform(0.01, 0.2), **command)
        if inspect_output(path) == "complete":
            check(path, whole, contents)
            path = tmp_path / str(number)
    if inspect_output(path) != "complete":
        assert run(path, **command)["status"] == 0
    check(path, whole, contents)
