"""Checkpoints: everything that training needs to continue as if it had never stopped.

Each variant and step has a folder ``<variant>/checkpoints/step_00001000``, renamed into place when complete:

- ``cfg.json``, ``weights.safetensors``: the SAE at that step, which ``load_sae`` can read;
- ``training.safetensors``: optimizer moments, thresholds, dead counters, the unfinished metrics interval;
- ``progress.json``: the step. Random numbers, batches and the learning rate are functions of (seed, step).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import SaecacheError
from ...common.fvu import RowVariance
from ...store.durable import fsync_folder, write_bytes
from ..engine.trainee import Trainee
from ..sae import SAE, WEIGHTS_FILE
from ..tensor_file import read_tensors, write_tensors

FOLDER, FAILURE_FILE = "checkpoints", "failed.json"
TRAINING_FILE, PROGRESS_FILE = "training.safetensors", "progress.json"


def save_checkpoint(folder: Path, step: int, trainee: Trainee, sae: SAE, inputs: RowVariance) -> None:
    """Write the state after ``step`` steps below a variant's ``folder``."""
    final = folder / FOLDER / f"step_{step:08d}"
    temporary = final.with_name(final.name + ".tmp")
    for leftover in (temporary, final):  # left by a run that was killed, or that repeats these steps
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    sae.save(temporary)
    groups = {name: group for name, group in trainee.tensors().items() if name != "parameters"}
    write_tensors(temporary / TRAINING_FILE, _named(groups | {"inputs": inputs.tensors()}))
    write_bytes(temporary / PROGRESS_FILE, json.dumps({"step": step}).encode("utf-8"))
    temporary.rename(final)
    fsync_folder(final.parent)


def load_checkpoint(folder: Path, step: int, trainee: Trainee, inputs: RowVariance) -> None:
    """Put the state after ``step`` steps into ``trainee`` and ``inputs``, tensor by tensor.

    Raises:
        SaecacheError: the checkpoint's tensors are not exactly those of this variant.
    """
    source = folder / FOLDER / f"step_{step:08d}"
    weights, training = read_tensors(source / WEIGHTS_FILE), read_tensors(source / TRAINING_FILE)
    for key in training:
        group, _, name = key.partition("/losses.")
        if group == "interval" and name:  # a new interval does not know the names of the losses yet
            trainee.interval.losses[name] = torch.zeros((), dtype=torch.float64, device=inputs.sum.device)
    targets = trainee.tensors()
    parameters = targets.pop("parameters")
    _copy_into(parameters, {name: weights[name] for name in parameters if name in weights}, source)
    _copy_into(_named(targets | {"inputs": inputs.tensors()}), training, source)


def saved_steps(folder: Path) -> list[int]:
    """The steps at which a variant has complete checkpoints, ascending."""
    return sorted(int(path.name[5:]) for path in (folder / FOLDER).glob("step_????????") if path.is_dir())


def resume_step(folders: Sequence[Path]) -> int:
    """The last step from which every variant can continue; 0 when there is none.

    If the process is killed between the checkpoints of two variants, one is ahead of the other. A variant
    that had failed before the step needs no checkpoint.
    """

    def ready(folder: Path, step: int) -> bool:
        return step in saved[folder] or failure_before(folder, step) is not None

    saved = {folder: {0, *saved_steps(folder)} for folder in folders}
    everywhere = set.union(*saved.values())
    return max(step for step in everywhere if all(ready(folder, step) for folder in folders))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints of a variant, and unfinished ones of a killed process."""
    for step in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / FOLDER / f"step_{step:08d}")
    for leftover in (folder / FOLDER).glob("*.tmp"):
        shutil.rmtree(leftover)


def record_failure(folder: Path, step: int, reason: str) -> None:
    """Record that a variant failed in ``step`` (0-based)."""
    write_bytes(folder / FAILURE_FILE, json.dumps({"step": step, "reason": reason}).encode("utf-8"))


def forget_failure(folder: Path) -> None:
    """Remove the record of a failure, for a variant that continues from an earlier step."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)


def failure_before(folder: Path, step: int) -> str | None:
    """The reason why a variant failed before ``step`` steps were done; None if it did not."""
    path = folder / FAILURE_FILE
    if not path.exists():
        return None
    failure = json.loads(path.read_text("utf-8"))
    return str(failure["reason"]) if failure["step"] < step else None


def _named(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()
    }


def _copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], source: Path) -> None:
    if targets.keys() != values.keys():
        missing, unknown = sorted(targets.keys() - values.keys()), sorted(values.keys() - targets.keys())
        raise SaecacheError(
            f"{source} is not a checkpoint of this variant and version: it lacks the tensors {missing}, "
            f"and has {unknown} beside the expected ones; continue with the version of saecache that wrote it"
        )
    for name, target in targets.items():
        target.copy_(values[name])
