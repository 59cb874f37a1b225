"""Checkpoints: everything that training needs to continue as if it had never stopped.

Each variant and step has a folder ``<variant>/checkpoints/step_00001000``, renamed into place when complete:

- ``cfg.json``, ``weights.safetensors``: the SAE at that step, which ``load_sae`` can read;
- ``training.safetensors``: optimizer moments, thresholds, dead counters, the unfinished metrics interval;
- ``progress.json``: the step, and the sha256 of the other files. Random numbers, batches and the learning
  rate are functions of (seed, step).

A checkpoint is used only if its files have these checksums, and if its tensors have the types and shapes of
the variant's. Version 0.1 wrote no checksums; its checkpoints are checked by types and shapes alone.
"""

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from ...common.errors import UsageError
from ...common.frozen import FrozenModel
from ...common.validation import validate
from ...store.durable import fsync_folder, write_bytes
from ...store.untrusted_files import read_file, read_object
from ..engine.reading import TargetVariance
from ..engine.trainee import Trainee
from ..latent_shards import LatentShards
from ..sae import CONFIG_FILE, SAE, WEIGHTS_FILE
from ..shared_tensor_file import read_tensors, shared_names, whole_info, write_tensors
from ..tensor_file import TensorInfo, check_header, read_header, sha256_of

FOLDER, FAILURE_FILE = "checkpoints", "failed.json"
TRAINING_FILE, PROGRESS_FILE = "training.safetensors", "progress.json"
HELD = ("state", "dead")  # tensors of all latents that a process holds; moments are of those it updates
CHECKED_FILES = (CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE)
MAX_RECORD_BYTES = 1 << 16  # of progress.json and failed.json

_NAME = re.compile(r"step_([0-9]{8,15})")
_LOSSES = "interval/losses."  # a new interval does not know the names of the losses yet
_LOSS = TensorInfo(torch.float64, ())


class Progress(FrozenModel):
    """The content of ``progress.json``."""

    step: PositiveInt
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] | None = None  # by file; None: of 0.1


class Failure(FrozenModel):
    """The content of ``failed.json``: a variant failed in ``step`` (0-based)."""

    step: NonNegativeInt
    reason: str


def save_checkpoint(folder: Path, step: int, trainee: Trainee, sae: SAE, inputs: TargetVariance) -> None:
    """Write the state after ``step`` steps below a variant's ``folder``.

    Processes that share the SAE call this together, and each writes the rows of its latents.
    """
    owners, final = trainee.owners, _place(folder, step)
    group = owners.latents.group
    temporary = final.with_name(final.name + ".tmp")

    def start() -> None:
        for leftover in (temporary, final):  # left by a run that was killed, or that repeats these steps
            _remove(leftover)
        temporary.mkdir(parents=True)

    group.on_first(start)
    weights = save_sae(sae, trainee, temporary)
    groups = trainee.tensors()
    del groups["parameters"]
    groups |= {name: owners.part(groups[name]) for name in HELD}
    tensors, shared = _named(groups | {"inputs": inputs.tensors()}), _shared(groups)
    training = write_tensors(temporary / TRAINING_FILE, tensors, owners.latents, shared)

    def finish() -> None:
        config = sha256_of(temporary / CONFIG_FILE)
        checksums = {CONFIG_FILE: config, WEIGHTS_FILE: weights, TRAINING_FILE: training}
        progress = Progress(step=step, sha256=checksums)
        write_bytes(temporary / PROGRESS_FILE, progress.model_dump_json().encode("utf-8"))
        temporary.rename(final)
        fsync_folder(final.parent)

    group.on_first(finish)


def save_sae(sae: SAE, trainee: Trainee, folder: Path) -> str:
    """Call ``sae.save(folder)`` in the processes with the first rows of a batch: the others have the same.

    Returns:
        The sha256 of the weights, in hexadecimal; in the other processes nothing.
    """
    weights = ""
    if trainee.plan.row_group.size == 1:
        return sae.save(folder)
    with trainee.plan.grid.together():
        if trainee.plan.row_group.is_first:
            weights = sae.save(folder)
    return weights


def check_checkpoint(folder: Path, step: int, trainee: Trainee, inputs: TargetVariance) -> None:
    """Make sure that ``trainee`` can continue from the checkpoint after ``step`` steps; nothing is changed.

    Raises:
        UsageError: the checkpoint is damaged, of another step, or of another variant.
    """
    source = _place(folder, step)
    try:
        found = read_object(source / PROGRESS_FILE, "it is not used", MAX_RECORD_BYTES)
        progress = validate(Progress, found, str(source / PROGRESS_FILE))
        if progress.step != step:
            raise UsageError(f"{source} holds step {progress.step}: it was renamed, or is damaged")
        if progress.sha256 is not None and progress.sha256.keys() != set(CHECKED_FILES):
            raise UsageError(f"{source / PROGRESS_FILE} should have the sha256 of {', '.join(CHECKED_FILES)}")
        _check_tensors(source, trainee, inputs)  # first, because what is hashed then has the right size
        read_file(source / CONFIG_FILE)
        for name, expected in (progress.sha256 or {}).items():
            if (got := sha256_of(source / name)) != expected:
                raise UsageError(f"{source / name} is damaged: its sha256 is {got}, expected {expected}")
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is missing") from None


def load_checkpoint(folder: Path, step: int, trainee: Trainee, inputs: TargetVariance) -> None:
    """Put the state after ``step`` steps into ``trainee`` and ``inputs``, tensor by tensor.

    Processes that share the SAE read the rows of their latents, whoever wrote them.

    The checksums were compared by :func:`check_checkpoint`, which reads all bytes.

    Raises:
        UsageError: the checkpoint's tensors are not those of this variant, and nothing was changed.
    """
    source = _place(folder, step)
    _check_tensors(source, trainee, inputs)
    for key in _losses_in(source / TRAINING_FILE):
        trainee.interval.losses[key.removeprefix(_LOSSES)] = torch.zeros((), dtype=torch.float64)
    targets, shards = trainee.tensors(), trainee.shards
    parameters = targets.pop("parameters")
    weights = parameters | dict(trainee.variant.inference_tensors(trainee.state))
    _copy_into(parameters, read_tensors(source / WEIGHTS_FILE, shared_names(weights), shards))
    shared = _shared(targets)
    held = _named({name: targets.pop(name) for name in HELD})
    _copy_into(held, read_tensors(source / TRAINING_FILE, shared, shards, held))
    updated = _named(targets | {"inputs": inputs.tensors()})
    _copy_into(updated, read_tensors(source / TRAINING_FILE, shared, trainee.owners.latents, updated))


def saved_steps(folder: Path) -> list[int]:
    """The steps at which a variant has complete checkpoints, ascending."""
    names = (path.name for path in (folder / FOLDER).glob("step_*") if path.is_dir())
    steps = (int(match[1]) for match in map(_NAME.fullmatch, names) if match)
    return sorted(step for step in steps if _place(folder, step).is_dir())


def resume_steps(folders: Sequence[Path], num_steps: int) -> list[int]:
    """The steps from which every variant may continue, the last one first; they are not checked yet.

    If the process is killed between the checkpoints of two variants, one is ahead of the other. A variant
    that had failed before the step needs no checkpoint. Steps beyond the run's ``num_steps`` are left out.
    """

    def ready(folder: Path, step: int) -> bool:
        return step in saved[folder] or failure_before(folder, step) is not None

    saved = {folder: set(saved_steps(folder)) for folder in folders}
    somewhere = sorted(set.union(*saved.values()), reverse=True)
    return [s for s in somewhere if 0 < s <= num_steps and all(ready(folder, s) for folder in folders)]


def prune(folder: Path, keep: int, step: int) -> None:
    """Remove all but the last ``keep`` checkpoints up to ``step``, and unfinished ones of a killed process.

    Later ones are left: they were refused, or the run has gone back behind them and replaces them.
    """
    for old in [saved for saved in saved_steps(folder) if saved <= step][:-keep]:
        _remove(_place(folder, old))
    for leftover in (folder / FOLDER).glob("*.tmp"):
        _remove(leftover)


def record_failure(folder: Path, step: int, reason: str) -> None:
    """Record that a variant failed in ``step`` (0-based)."""
    write_bytes(folder / FAILURE_FILE, json.dumps({"step": step, "reason": reason}).encode("utf-8"))


def forget_failure(folder: Path) -> None:
    """Remove the record of a failure, for a variant that continues from an earlier step."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)


def failure_before(folder: Path, step: int) -> str | None:
    """The reason why a variant failed before ``step`` steps were done; None if it did not.

    Raises:
        UsageError: the record of the failure is damaged.
    """
    path = folder / FAILURE_FILE
    fix = "remove it: the variant then continues from its last checkpoint"
    try:
        failure = validate(Failure, read_object(path, fix, MAX_RECORD_BYTES), f"{path} ({fix})")
    except FileNotFoundError:
        return None
    return failure.reason if failure.step < step else None


def _place(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step_{step:08d}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _named(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()
    }


def _check_tensors(source: Path, trainee: Trainee, inputs: TargetVariance) -> None:
    targets = trainee.tensors()
    weights = targets.pop("parameters") | dict(trainee.variant.inference_tensors(trainee.state))
    training, shared = _named(targets | {"inputs": inputs.tensors()}), _shared(targets)
    expected = _infos(training, shared, trainee.shards)
    check_header(source / TRAINING_FILE, expected | _losses_in(source / TRAINING_FILE))
    check_header(source / WEIGHTS_FILE, _infos(weights, shared_names(weights), trainee.shards))


def _infos(
    tensors: Mapping[str, Tensor], shared: Collection[str], shards: LatentShards
) -> dict[str, TensorInfo]:
    return {name: whole_info(tensor, shards, name in shared) for name, tensor in tensors.items()}


def _shared(groups: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The names of the tensors with a row for each latent; the sums of an interval have none."""
    return shared_names(_named({name: group for name, group in groups.items() if name != "interval"}))


def _losses_in(path: Path) -> dict[str, TensorInfo]:
    """The sums of the losses that a training file has, as they should be."""
    return {name: _LOSS for name in read_header(path) if name.startswith(_LOSSES)}


def _copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])
