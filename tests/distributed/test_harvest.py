"""A harvest by several processes: the same bytes for any number of them, whatever happens to one."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from saecache.harvest import HarvestConfig
from saecache.store import inspect_output, verify_cache
from saecache.store.writing.journal import read_journal

from .harvesting import Mishap, forkserver, run, start, wait

MakeConfig = Callable[..., HarvestConfig]
END_SECONDS = 30.0  # in which all processes must have ended after one has failed


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return forkserver()


@pytest.fixture(scope="module")
def config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    """Several hooks, documents of very different lengths, of which some are held out, and sinks left out."""
    folder = tmp_path_factory.mktemp("ragged")
    lines = (json.dumps({"text": f"document {i} says " + "so it goes, " * (i % 90)}) for i in range(300))
    (folder / "a.jsonl").write_text("\n".join(lines))
    return make_config(
        text={"kind": "files", "paths": str(folder)},
        hooks=["resid_post.1", "mlp_out.2", "attn_out.0"],
        num_tokens=60_000,
        batch_size=32,
        commit_seconds=0.0,
        selection={"sink_ratio": 1.5},
    )


@pytest.fixture(scope="module")
def alone(
    processes: ForkServerContext, config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    path = tmp_path_factory.mktemp("alone") / "cache"
    assert run(processes, 1, config, path)[0].status == 0
    return contents(path)


def contents(cache: Path) -> dict[str, str]:
    """The digest of every file but those that hold times."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    names = {path.relative_to(cache).as_posix(): path for path in sorted(files)}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith("provenance/")
    }


def complete(processes: ForkServerContext, size: int, config: HarvestConfig, path: Path) -> None:
    for rank, ended in enumerate(run(processes, size, config, path)):
        assert ended.status == 0, f"process {rank}: {ended.errors[-3000:]}"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_bytes_are_those_of_one_process(
    processes: ForkServerContext, config: HarvestConfig, alone: dict[str, str], tmp_path: Path, size: int
) -> None:
    path = tmp_path / "cache"
    complete(processes, size, config, path)
    assert contents(path) == alone
    assert verify_cache(path).ok
    said = [path.with_name(f"cache.{rank}.txt").read_text() for rank in range(size)]
    assert "planned:" in said[0] and not any("planned:" in text for text in said[1:])
    complete(processes, size, config, path)  # a finished one is left as it is
    assert contents(path) == alone
