"""Training from a bucket gives the same bytes as from the folder, also after ``kill -9`` and SIGTERM."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.store.remote.push import Push
from saecache.testing.run_folders import TIMING, folder_bytes, metrics
from saecache.testing.sparse_rows import D_MODEL, sparse_rows
from saecache.train import TrainConfig, run

from ...killing import DEADLINE_SECONDS, killed_runs
from ...store.remote.proxy import Proxy

ROUNDS = 50 if os.environ.get("SAECACHE_LONG_TESTS") else 5
SETTINGS: dict[str, Any] = {
    "hook": "resid",
    "variants": [{"kind": "topk", "k": 4}, {"kind": "batch_topk", "k": 4}],
    "num_latents": 96,
    "batch_rows": 128,
    "epochs": 2,
    "dead_after_rows": 700,
    "checkpoint": {"every_steps": 5, "keep": 2},
    "log": {"every_steps": 5, "progress": False},
    "device": "cpu",
}
TRAIN = """
import sys
import saecache.train.runs.runner
from saecache.train import TrainConfig, run

config = TrainConfig.model_validate_json(sys.argv[1])
work = lambda url, out: run(config, url, out)
"""


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 3000 rows in shards of 128."""
    path = tmp_path_factory.mktemp("bucket") / "cache"
    storage = StorageConfig(chunk_rows=64, shard_bytes=128 * 2 * D_MODEL)
    hooks, rows = {"resid": D_MODEL, "out": D_MODEL}, sparse_rows(3000, D_MODEL, 0)
    with CacheWriter(
        path, hooks=hooks, identity={"source": "toy"}, heldout_fraction=0.1, storage=storage
    ) as writer:
        writer.write_rows({"resid": rows, "out": rows.flip(1).abs()})
    return path


@pytest.fixture(scope="module")
def never_stopped(
    config: TrainConfig, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of training from the folder."""
    return outcome(run(config, folder, tmp_path_factory.mktemp("local") / "run").run_dir)


@pytest.fixture
def url(team: str, folder: Path) -> str:
    Push(folder, f"{team}/cache").run()
    return f"{team}/cache"


@pytest.fixture(autouse=True)
def _small_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """The download cache holds a third of the cache."""
    limit = sum(file.size for file in open_cache(folder).manifest.files) // 3
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    monkeypatch.setenv("SAECACHE_CACHE_BYTES", str(limit))
    yield


@pytest.mark.parametrize(
    "changes",
    [{"hook": "all", "crosscoder": True}, {"hook": "resid", "target": {"hook": "out"}, "steps": 30}],
    ids=["crosscoder", "transcoder"],
)
def test_several_hooks_stream_together(
    changes: dict[str, Any], url: str, folder: Path, tmp_path: Path
) -> None:
    settings = {key: value for key, value in SETTINGS.items() if not ("steps" in changes and key == "epochs")}
    config = TrainConfig.model_validate({**settings, **changes})
    wanted = outcome(run(config, folder, tmp_path / "local").run_dir)
    assert outcome(run(config, url, tmp_path / "streamed").run_dir) == wanted


def outcome(run_dir: Path) -> dict[str, Any]:
    """The SAEs and the metrics, without the measured times."""
    lines = [{key: value for key, value in line.items() if key not in TIMING} for line in metrics(run_dir)]
    saes = {name: folder_bytes(run_dir / name / "sae") for name in ("topk_k4", "batch_topk_k4")}
    return {"metrics": lines, **saes}


def test_the_same_bytes_as_from_the_folder(
    config: TrainConfig, url: str, never_stopped: dict[str, Any], tmp_path: Path
) -> None:
    result = run(config, url, tmp_path / "run")
    assert outcome(result.run_dir) == never_stopped
    assert run(config, open_cache(url), tmp_path / "run").reused


def test_a_run_goes_on_from_another_place(
    config: TrainConfig, url: str, folder: Path, never_stopped: dict[str, Any], tmp_path: Path
) -> None:
    """A run belongs to a cache, whose place may change."""

    class StoppedError(Exception):
        pass

    cache = open_cache(folder)
    batches = cache.batches

    def failing(*arguments: Any, **settings: Any) -> Iterator[Any]:
        for number, batch in enumerate(batches(*arguments, **settings)):
            if number == 8:
                raise StoppedError
            yield batch

    cache.batches = failing  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        run(config, cache, tmp_path / "run")
    assert outcome(run(config, url, tmp_path / "run").run_dir) == never_stopped


def test_kill_9_at_random_moments(
    config: TrainConfig, url: str, never_stopped: dict[str, Any], tmp_path: Path
) -> None:
    """After a kill while it downloads, reads, trains or saves, the same call ends with the same bytes."""
    clock, killed = random.Random(0), 0
    with killed_runs(TRAIN, config.model_dump_json()) as run_killed:
        for number in range(ROUNDS):
            out = tmp_path / f"run{number}"
            for _ in range(1 + number % 2):
                status = run_killed(url, str(out), seconds=clock.uniform(0.0, 0.9))
                assert status in (0, -signal.SIGKILL)
                killed += status == -signal.SIGKILL
            assert outcome(run(config, url, out).run_dir) == never_stopped
    assert killed >= ROUNDS - 1


TERMINATED = """
import os, signal
from saecache.cli import main
from saecache.train.engine.metrics import MetricsFile

append = MetricsFile.append

def append_and_be_told(self, *args, **kwargs):
    MetricsFile.append = append
    append(self, *args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)

MetricsFile.append = append_and_be_told
main()
"""


def test_sigterm_of_the_command_saves_and_says_so(
    config: TrainConfig, url: str, never_stopped: dict[str, Any], tmp_path: Path
) -> None:
    """SIGTERM, as from Slurm and spot machines, gives status 130, and the same command continues."""
    import yaml

    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    command = [sys.executable, "-c", TERMINATED, "train", str(settings)]
    command += ["--cache", url, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    assert done.returncode == 130, done.stderr
    assert "what was done is saved" in done.stderr
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    assert outcome(run(config, url, tmp_path / "run").run_dir) == never_stopped


def test_a_fault_that_stays_ends_the_run_and_not_the_epoch(
    config: TrainConfig,
    url: str,
    proxy: Proxy,
    never_stopped: dict[str, Any],
    tmp_path: Path,
) -> None:
    settings = {"status": 403, "code": "AccessDenied", "times": 99}
    fault = proxy.add("status", method="GET", path="activations/c/9/0", **settings)
    with pytest.raises(ValueError, match="not allowed"):
        run(config, url, tmp_path / "run")
    assert fault.met
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    proxy.clear()
    assert outcome(run(config, url, tmp_path / "run").run_dir) == never_stopped


def test_evaluation_reads_the_bucket(config: TrainConfig, url: str, folder: Path, tmp_path: Path) -> None:
    from saecache.evaluate import run as evaluate

    trained = run(config, url, tmp_path / "run").run_dir
    remote = evaluate([trained], url, out=tmp_path / "remote.json", show_progress=False)
    local = evaluate([trained], folder, out=tmp_path / "local.json", show_progress=False)
    assert remote.saes == local.saes
    assert remote.cache.path == url
