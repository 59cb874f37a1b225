"""Commands in several processes, started as torchrun starts them, and by torchrun itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest import run as harvest
from saecache.train import TrainConfig
from saecache.train import run as train

from .processes import SECONDS, run, start, wait


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small cache of the built-in model, and a run of three SAEs."""
    folder = tmp_path_factory.mktemp("demo")
    settings = {
        "model": {"name": "builtin:demo", "dtype": "float32"},
        "text": {"kind": "builtin"},
        "tokens": {"context": 64, "max_document_tokens": 300},
        "hooks": ["resid_post.1"],
        "num_tokens": 6000,
        "heldout_fraction": 0.3,
        "device": "cpu",
    }
    cache = harvest(HarvestConfig.model_validate(settings), folder / "cache").path
    kinds = [{"kind": "topk", "k": 4}, {"kind": "batch_topk", "k": 4}, {"kind": "relu"}]
    config = TrainConfig.model_validate({"num_latents": 64, "batch_rows": 256, "steps": 4, "variants": kinds})
    return Path(cache), train(config, cache, folder / "run").run_dir


def measured(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    found.pop("created")
    return found


def test_an_evaluation_is_the_same_for_any_number_of_processes(
    demo: tuple[Path, Path], tmp_path: Path
) -> None:
    cache, run_dir = demo
    command = ["-m", "saecache", "evaluate", str(run_dir), "--cache", str(cache), "--set", "ce_tokens=500"]
    for size in (1, 2, 3, 4):
        ended = run(size, [*command, "--out", f"{size}/results.json"], tmp_path)
        assert "topk_k4" in ended[0].output
        assert [(one.output, one.errors) for one in ended[1:]] == [("", "")] * (size - 1)
    expected = measured(tmp_path / "1" / "results.json")
    assert len(expected["saes"]) == 3
    assert len(expected["overlap"]) == 3
    assert all(sae["language_model"] for sae in expected["saes"])
    for size in (2, 3, 4):
        assert measured(tmp_path / str(size) / "results.json") == expected


def test_a_mistake_is_said_once_and_ends_all(demo: tuple[Path, Path], tmp_path: Path) -> None:
    cache, _ = demo
    ended = wait(start(2, ["-m", "saecache", "evaluate", "nothing", "--cache", str(cache)], tmp_path))
    assert [one.status for one in ended] == [2, 2]
    assert sum(one.errors.count("error") for one in ended) == 1
    assert sum("nothing" in one.errors for one in ended) == 1


def test_torchrun_starts_a_command(demo: tuple[Path, Path], tmp_path: Path) -> None:
    cache, run_dir = demo
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["-m", "saecache", "evaluate", str(run_dir), "--cache", str(cache), "--no-model"]
    ended = subprocess.run(
        [*torchrun, *command, "--out", "found.json", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [sae["name"] for sae in json.loads(ended.stdout)["saes"]] == [
        sae["name"] for sae in measured(tmp_path / "found.json")["saes"]
    ]
