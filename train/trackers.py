"""The metrics elsewhere: TensorBoard and Weights & Biases, each an optional extra of the package."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ..store.errors import UsageError
from .config import TrainConfig


class Tracker(Protocol):
    """Takes the lines that also go to metrics.jsonl."""

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``; every variant is a curve of each chart."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        module = _load("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def write(self, line: Mapping[str, Any]) -> None:
        for key, value in numbers(line).items():
            self._writer.add_scalar(f"{key}/{line['variant']}", value, line["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One W&B run per training run, resumed under the same id."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]) -> None:
        module = _load("wandb", "wandb")
        name = run_dir.name
        self._run = module.init(
            project=project, name=name, id=name, dir=str(run_dir), config=config, resume="allow"
        )

    def write(self, line: Mapping[str, Any]) -> None:
        values = {f"{line['variant']}/{key}": value for key, value in numbers(line).items()}
        self._run.log(values, step=line["step"])

    def close(self) -> None:
        self._run.finish()


def open_trackers(config: TrainConfig, run_dir: Path, first_step: int) -> list[Tracker]:
    """The trackers that ``config.log`` asks for.

    Raises:
        UsageError: the package that one of them needs is not installed.
    """
    trackers: list[Tracker] = []
    if config.log.tensorboard:
        trackers.append(TensorBoard(run_dir, first_step))
    if config.log.wandb_project is not None:
        trackers.append(Wandb(run_dir, config.log.wandb_project, config.model_dump(mode="json")))
    return trackers


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn of a line."""
    return {k: v for k, v in line.items() if isinstance(v, int | float) and k not in ("step", "variant")}


def _load(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"log: {extra} is not installed ({error}); pip install 'saecache[{extra}]'"
        ) from None
