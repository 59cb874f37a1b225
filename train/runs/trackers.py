"""Send metrics to TensorBoard or Weights & Biases, each an optional extra of the package."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from .config import LogConfig, TrainConfig


class Tracker(Protocol):
    """Receives every line of metrics.jsonl."""

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes event files to ``RUN/tensorboard``; each chart has one curve per variant."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        module = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def write(self, line: Mapping[str, Any]) -> None:
        for key, value in numbers(line).items():
            self._writer.add_scalar(f"{key}/{line['variant']}", value, line["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Logs a training run as one W&B run; resuming continues it under the same id."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]) -> None:
        module = import_module("wandb")
        name = run_dir.name
        self._run = module.init(
            project=project, name=name, id=name, dir=str(run_dir), config=config, resume="allow"
        )

    def write(self, line: Mapping[str, Any]) -> None:
        values = {f"{line['variant']}/{key}": value for key, value in numbers(line).items()}
        self._run.log(values, step=line["step"])

    def close(self) -> None:
        self._run.finish()


def missing_trackers(log: LogConfig) -> list[str]:
    """An error message for every configured tracker whose package is not installed."""
    configured = {"tensorboard": log.tensorboard, "wandb": log.wandb_project is not None}
    return [
        f"log: {package} is not installed; pip install 'saecache[{package}]'"
        for package, is_configured in configured.items()
        if is_configured and find_spec(package) is None
    ]


def open_trackers(config: TrainConfig, run_dir: Path, first_step: int) -> list[Tracker]:
    """Open the trackers that ``config.log`` configures."""
    trackers: list[Tracker] = []
    if config.log.tensorboard:
        trackers.append(TensorBoard(run_dir, first_step))
    if config.log.wandb_project is not None:
        trackers.append(Wandb(run_dir, config.log.wandb_project, config.model_dump(mode="json")))
    return trackers


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line that charts can show."""
    return {k: v for k, v in line.items() if isinstance(v, int | float) and k not in ("step", "variant")}
