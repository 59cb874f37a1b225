"""The files of a run, as tests compare and rewind them."""

import json
import shutil
from pathlib import Path
from typing import Any

TIMING = ("seconds", "rows_per_second", "data_wait_fraction")
"""Metrics that differ from run to run."""


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below ``folder``, by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]


def run_bytes(run_dir: Path) -> dict[str, Any]:
    """All files of a run, without the measured times."""
    found: dict[str, Any] = dict(folder_bytes(run_dir))
    found["metrics.jsonl"] = [{k: v for k, v in m.items() if k not in TIMING} for m in metrics(run_dir)]
    assert "run.json" in found and ".lock" in found
    return found


def rewind(run_dir: Path, name: str, to_step: int) -> None:
    """Make a finished run look as if it had been killed after the checkpoint of ``to_step``."""
    run_json = json.loads((run_dir / "run.json").read_text("utf-8"))
    (run_dir / "run.json").write_text(json.dumps({**run_json, "finished": False}))
    shutil.rmtree(run_dir / name / "sae")
    for checkpoint in (run_dir / name / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step_")) > to_step:
            shutil.rmtree(checkpoint)
    assert (run_dir / name / "checkpoints" / f"step_{to_step:08d}").is_dir()
