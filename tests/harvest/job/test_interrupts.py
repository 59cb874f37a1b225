"""Real signals to a real process: after ``kill -9`` at any moment the same call ends with the same bytes."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest.runner import run
from saecache.store import inspect_output, verify_cache
from saecache.store.writing.journal import read_journal
from saecache.store.writing.spill import SpillWriter

from ...killing import DEADLINE_SECONDS, act_when

MakeConfig = Callable[..., HarvestConfig]
NUM_TOKENS = 24_000


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["saecache.harvest.job.phases", "transformers.models.gpt_neox.modeling_gpt_neox"]
    )
    return context


@pytest.fixture(scope="module")
def config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    folder = tmp_path_factory.mktemp("long")
    lines = (json.dumps({"text": f"document {i} says " + "so it goes, " * (i % 90)}) for i in range(200))
    (folder / "a.jsonl").write_text("\n".join(lines))
    return make_config(
        text={"kind": "files", "paths": str(folder)},
        num_tokens=NUM_TOKENS,
        batch_size=32,
        commit_seconds=0.0,
        selection={"sink_ratio": 1.5},
    )


@pytest.fixture(scope="module")
def uninterrupted(config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config, tmp_path_factory.mktemp("whole") / "cache").path


def contents(cache: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(cache.rglob("*")):
        name = path.relative_to(cache).as_posix()
        if path.is_file() and not name.startswith("provenance/"):  # it holds times
            yield name, path.read_bytes()


def sequences_done(path: Path) -> int:
    journal = read_journal(path)
    return 0 if journal is None else journal.sequences


def moments(path: Path) -> list[Callable[[], object]]:
    """From the first file to the last arrays."""
    total = NUM_TOKENS // 16
    return [
        lambda: (path / ".writing").exists(),
        lambda: sequences_done(path) > total // 4,
        lambda: sequences_done(path) > total // 2,
        lambda: next((path / "rows").rglob("c/*"), None) is not None,  # the final arrays appear
        lambda: (path / "stats").exists(),
    ]


def run_with_signal(config: HarvestConfig, path: Path, moment: int, number: int) -> None:
    act_when(moments(path)[moment], lambda: os.kill(os.getpid(), number))
    run(config, path)


def test_kill_9(
    processes: ForkServerContext, config: HarvestConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    assert config.tokens.context == 16
    for moment in range(len(moments(path))):
        process = processes.Process(target=run_with_signal, args=(config, path, moment, signal.SIGKILL))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert inspect_output(path) == "incomplete"
    result = run(config.model_copy(update={"batch_size": 64}), path)
    assert list(contents(path)) == list(contents(uninterrupted))
    assert verify_cache(path).ok
    assert result.manifest.counts["tokens"] >= NUM_TOKENS


def run_with_signal_before_the_commit(config: HarvestConfig, path: Path, number: int) -> None:
    """The signal comes when rows are on their way to the disk and no journal knows of them."""
    submit = SpillWriter.submit

    def submitted(self: SpillWriter, block: Any) -> None:
        submit(self, block)
        os.kill(os.getpid(), number)

    SpillWriter.submit = submitted  # type: ignore[method-assign]
    run(config, path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_what_was_done(
    processes: ForkServerContext, config: HarvestConfig, uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "cache"
    seldom = config.model_copy(update={"commit_seconds": 1e6})
    process = processes.Process(target=run_with_signal_before_the_commit, args=(seldom, path, number))
    process.start()
    process.join()
    assert process.exitcode == 1  # KeyboardInterrupt, which the command line turns into 130
    assert sequences_done(path) > 0
    run(config, path)
    assert list(contents(path)) == list(contents(uninterrupted))


def test_two_harvests_into_one_output_are_refused(
    processes: ForkServerContext, config: HarvestConfig, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    process = processes.Process(target=run_with_signal, args=(config, path, 1, signal.SIGSTOP))
    process.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    try:
        with pytest.raises(ValueError, match="another process"):
            run(config, path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert inspect_output(path) == "incomplete"
