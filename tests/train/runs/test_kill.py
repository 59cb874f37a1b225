"""Processes are killed at awkward moments; the same command then ends with an undisturbed run's bytes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import TIMING, folder_bytes, metrics
from saecache.train import TrainConfig, run
from saecache.train.runs.checkpoint import resume_steps, saved_steps

from ...killing import DEADLINE_SECONDS

NAMES = ("topk_k4", "batch_topk_k4", "feature_choice_k4")
MOMENTS = {  # name -> (patched function of the package, before or after which of its calls, signal)
    "while a checkpoint is being written": ("runs.checkpoint.write_tensors", "before", 5, "SIGKILL"),
    "between the checkpoints of two variants": ("runs.recorder.save_checkpoint", "after", 4, "SIGKILL"),
    "when metrics are ahead of the checkpoint": ("engine.metrics.MetricsFile.append", "after", 2, "SIGKILL"),
    "before any checkpoint": ("engine.metrics.MetricsFile.append", "after", 1, "SIGKILL"),
    "before the last SAE is saved": ("sae.SAE.save", "before", 12, "SIGKILL"),
    "Ctrl-C": ("engine.metrics.MetricsFile.append", "after", 2, "SIGINT"),
    "SIGTERM": ("engine.metrics.MetricsFile.append", "after", 2, "SIGTERM"),
}
POLITE = ("Ctrl-C", "SIGTERM")
PARENT_OF_THE_KILLED = """
import importlib, json, os, signal, sys
from saecache.train import TrainConfig, run
import saecache.train.runs.runner

def stopping_at(target, when, count, signal_name):
    module_name, *path = target.split(".")
    owner = importlib.import_module("saecache.train." + module_name)
    for part in path[:-1]:
        owner = getattr(owner, part)
    original, calls = getattr(owner, path[-1]), [0]

    def patched(*args, **kwargs):
        calls[0] += 1
        stop = calls[0] == count
        if stop and when == "before":
            os.kill(os.getpid(), getattr(signal, signal_name))
        result = original(*args, **kwargs)
        if stop and when == "after":
            os.kill(os.getpid(), getattr(signal, signal_name))
        return result

    setattr(owner, path[-1], patched)

cache, folder, config, moments = sys.argv[1:]
config = TrainConfig.model_validate_json(config)
statuses = {}
for moment, how in json.loads(moments).items():  # forked before torch has started a thread: one import
    child = os.fork()
    if child == 0:
        stopping_at(*how)
        try:
            run(config, cache, os.path.join(folder, moment))
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    statuses[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def runs(
    cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, Path, dict[str, tuple[Path, int]]]:
    """The config, a run that was never stopped, and the folder that a process stopped at each moment left."""
    folder = tmp_path_factory.mktemp("runs")
    config = TrainConfig.model_validate(
        {
            "variants": [{"kind": name.removesuffix("_k4"), "k": 4} for name in NAMES],
            "num_latents": 96,
            "batch_rows": 256,
            "steps": 8,
            "dead_after_rows": 700,
            "checkpoint": {"every_steps": 3, "keep": 9},
            "log": {"every_steps": 2, "progress": False},
            "device": "cpu",
        }
    )
    run(config, cache, folder / "never stopped")
    arguments = [str(cache.path), str(folder), config.model_dump_json(), json.dumps(MOMENTS)]
    process = subprocess.run(
        [sys.executable, "-c", PARENT_OF_THE_KILLED, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert process.returncode == 0, process.stderr
    statuses = json.loads(process.stdout)
    return config, folder / "never stopped", {m: (folder / m, status) for m, status in statuses.items()}


def outcome(run_dir: Path) -> dict[str, Any]:
    """The SAEs, the last checkpoints and the metrics, without the measured times."""
    found: dict[str, Any] = {
        "metrics": [{k: v for k, v in m.items() if k not in TIMING} for m in metrics(run_dir)]
    }
    for name in NAMES:
        found[name] = folder_bytes(run_dir / name / "sae")
        found[f"{name} at the end"] = folder_bytes(run_dir / name / "checkpoints" / "step_00000008")
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_ends_with_the_same_bytes(
    cache: ActivationCache, runs: tuple[TrainConfig, Path, dict[str, tuple[Path, int]]], moment: str
) -> None:
    config, never_stopped, left_behind = runs
    run_dir, status = left_behind[moment]
    assert status == (130 if moment in POLITE else -signal.SIGKILL)
    assert not json.loads((run_dir / "run.json").read_text())["finished"]
    if moment in POLITE:
        assert [saved_steps(run_dir / name)[-1] for name in NAMES] == [5, 5, 5], "it saves where it stops"
    if moment == "between the checkpoints of two variants":
        assert [saved_steps(run_dir / name)[-1] for name in NAMES] == [6, 3, 3]
        assert resume_steps([run_dir / name for name in NAMES], num_steps=9)[0] == 3
    result = run(config, cache, run_dir)
    assert not result.reused and list(result.saes) == list(NAMES)
    assert outcome(run_dir) == outcome(never_stopped)


def test_a_killed_process_leaves_the_folder_free(
    cache: ActivationCache,
    runs: tuple[TrainConfig, Path, dict[str, tuple[Path, int]]],
    make_config: Callable[..., Any],
) -> None:
    config, _, left_behind = runs
    for run_dir, _ in left_behind.values():
        assert (
            not list(run_dir.rglob("*.tmp")) or not json.loads((run_dir / "run.json").read_text())["finished"]
        )
        run(config, cache, run_dir)
        assert not list(run_dir.rglob("*.tmp"))
