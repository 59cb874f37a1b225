"""Send metrics to TensorBoard or Weights & Biases, each an optional extra of the package."""

import re
import secrets
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...common.regular_files import read_regular
from ...store.durable import write_bytes
from ...store.untrusted_json import check_writes_stay
from ..run_files import TENSORBOARD_FOLDER, WANDB_FOLDER
from .config import LogConfig, TrainConfig

_WANDB_ID = "saecache-id"  # the file that holds it
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tracker(Protocol):
    """Receives the lines of metrics.jsonl after step ``first_step``; the lines up to it were sent before."""

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes event files to ``RUN/tensorboard``; each chart has one curve per variant."""

    def __init__(self, config: TrainConfig, run_dir: Path, first_step: int) -> None:
        module = import_module("torch.utils.tensorboard")
        # what a run that broke off wrote of later steps comes again
        self._writer = module.SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=first_step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        for key, value in numbers(line).items():
            self._writer.add_scalar(f"{key}/{line['variant']}", value, line["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Logs a training run as one W&B run; resuming continues it under the same id."""

    def __init__(self, config: TrainConfig, run_dir: Path, first_step: int) -> None:
        module = import_module("wandb")
        self._run = module.init(
            project=config.log.wandb_project,
            name=run_dir.name,
            id=wandb_id(run_dir, first_step),
            dir=str(run_dir),
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def write(self, line: Mapping[str, Any]) -> None:
        values = {f"{line['variant']}/{key}": value for key, value in numbers(line).items()}
        self._run.log(values, step=line["step"])

    def close(self) -> None:
        self._run.finish()


def wandb_id(run_dir: Path, first_step: int) -> str:
    """The id of the W&B run, which is in the run's folder: another run of the same name has another one.

    Raises:
        UsageError: its place is a link, by which the run of somebody else would write elsewhere.
    """
    check_writes_stay(run_dir, [f"{WANDB_FOLDER}/{_WANDB_ID}"], "give another --out")
    path = run_dir / WANDB_FOLDER / _WANDB_ID
    try:
        found = read_regular(path, 64).decode("ascii", "replace")
    except FileNotFoundError:
        if first_step:  # it began with version 0.2.0, whose ids were names
            return run_dir.name
        found = ""
    except ValueError:  # not what was written there
        found = ""
    if _ID.fullmatch(found):
        return found
    made = re.sub(r"[^A-Za-z0-9_-]", "-", run_dir.name)[:48] + "-" + secrets.token_hex(4)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, made.encode("ascii"))
    return made


class Kind(NamedTuple):
    """A kind of tracker: the package and extra that it needs, whether it is configured, and what opens it."""

    package: str
    is_configured: Callable[[LogConfig], bool]
    open: Callable[[TrainConfig, Path, int], Tracker]


# A new tracker is one class above, one line here, and its setting in LogConfig. If it writes into the run's
# folder, that name is reserved in run_files.py.
KINDS = (
    Kind("tensorboard", lambda log: log.tensorboard, TensorBoard),
    Kind("wandb", lambda log: log.wandb_project is not None, Wandb),
)


def missing_trackers(log: LogConfig) -> list[str]:
    """An error message for every configured tracker whose package is not installed."""
    return [
        f"log: {kind.package} is not installed; pip install 'saecache[{kind.package}]'"
        for kind in KINDS
        if kind.is_configured(log) and find_spec(kind.package) is None
    ]


def open_trackers(config: TrainConfig, run_dir: Path, first_step: int) -> list[Tracker]:
    """Open the trackers that ``config.log`` configures, for the lines of metrics after ``first_step``."""
    return [kind.open(config, run_dir, first_step) for kind in KINDS if kind.is_configured(config.log)]


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line that charts can show."""
    return {k: v for k, v in line.items() if isinstance(v, int | float) and k not in ("step", "variant")}
