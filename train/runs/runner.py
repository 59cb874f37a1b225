"""``run(config, cache, out)``, which is ``saecache.train``: plan, start or resume, train and save."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ...common.counts import format_bytes
from ...common.errors import SaecacheError, UsageError
from ...common.interrupts import stop_on_signals
from ...common.memory import explain_out_of_memory
from ...store.reading.reader import ActivationCache, open_cache
from ..engine.feed import batches_of_sources
from ..engine.loop import Events, train
from ..engine.metrics import METRICS_FILE, MetricsFile
from ..engine.reading import Inputs, Source
from ..engine.trainee import Trainee
from ..sae import SAE_FOLDER
from .checkpoint import (
    FOLDER,
    check_checkpoint,
    failure_before,
    forget_failure,
    load_checkpoint,
    resume_steps,
)
from .config import TrainConfig
from .folder import claim, mark_finished
from .initialisation import centre_of, initial_parameters
from .planning import RunPlan, plan_run
from .recorder import Recorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a run.

    ``saes`` are the folders of the finished SAEs. ``failed`` has the reason why a variant stopped early; its
    last checkpoint is kept. ``reused``: the run had been finished before.
    """

    run_dir: Path
    saes: dict[str, Path]
    failed: dict[str, str]
    reused: bool
    last_lines: dict[str, dict[str, Any]]  # of metrics.jsonl, by variant


def run(
    config: TrainConfig, cache: ActivationCache | Path | str, out: Path | str | None = None
) -> TrainResult:
    """Train every variant of ``config`` on ``cache``; continue an unfinished run of both in ``out``.

    On Ctrl-C, and on the SIGTERM that Slurm and spot machines send, it finishes the step, saves a checkpoint
    and raises KeyboardInterrupt. The same call continues, and ends with the same bytes as a run that was
    never stopped.

    Raises:
        UsageError: the settings do not fit the cache, or ``out`` holds something else. Nothing is written.
        SaecacheError: the disk is full or gone. The same call continues once it is back.
    """
    cache = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    if config.cache_rows is not None:
        cache = cache.head(config.cache_rows)
    plan = plan_run(config, cache)
    logger.info("the run takes %s of memory: %s", format_bytes(plan.memory.total), plan.memory)
    out = Path(out) if out is not None else default_folder(config, cache)
    try:
        with (
            explain_out_of_memory(_how_to_save_memory(config)),
            claim(out, config, cache.fingerprint, [job.name for job in plan.jobs]) as finished,
        ):
            if not finished:
                _train(config, cache, plan, out)
                mark_finished(out)
            failed = {job.name: failure_before(out / job.name, plan.num_steps) for job in plan.jobs}
            last_lines = MetricsFile(out / METRICS_FILE).last_lines()
    except OSError as error:  # for example a full disk
        raise SaecacheError(
            f"{error}: fix this and run again; {out} continues from its last checkpoint"
        ) from error
    return TrainResult(
        run_dir=out,
        saes={name: out / name / SAE_FOLDER for name, reason in failed.items() if reason is None},
        failed={name: reason for name, reason in failed.items() if reason is not None},
        reused=finished,
        last_lines=last_lines,
    )


def _how_to_save_memory(config: TrainConfig) -> str:
    """What to lower if a device's memory is too small for a run."""
    number = len(config.variants)
    fewer = "" if number == 1 else f", or train fewer than {number} variants side by side"
    return (
        f"lower batch_rows={config.batch_rows} (accumulate_batches keeps the rows of a step), or the number "
        f"of latents{fewer}"
    )


def default_folder(config: TrainConfig, cache: ActivationCache) -> Path:
    """``runs/<first variant>-<hash>`` with a hash of config and cache, so that running again resumes."""
    identity = cache.fingerprint + config.model_dump_json()
    return Path("runs") / f"{config.variants[0].run_name}-{sha256(identity.encode('utf-8')).hexdigest()[:8]}"


def _train(config: TrainConfig, cache: ActivationCache, plan: RunPlan, out: Path) -> None:
    """Everything between an empty or interrupted folder and a finished one."""
    inputs = Inputs([job.reading for job in plan.jobs], plan.device)
    steps = resume_steps([out / job.name for job in plan.jobs], plan.num_steps)
    trainees = _make_trainees(config, cache, plan, fresh=not steps)
    first_step = _last_good(steps, trainees, inputs, out) if steps else 0
    running = _running(trainees, first_step, out)
    for trainee in running:
        forget_failure(out / trainee.name)
        if first_step:
            load_checkpoint(out / trainee.name, first_step, trainee, inputs.of(trainee.reading))
    if first_step:
        logger.info("resuming %s after step %d of %d", out, first_step, plan.num_steps)
    used = plan.num_steps * config.accumulate_batches / (plan.rows // config.batch_rows)
    if used > 1:
        logger.warning("every training row is used %.1f times", used)
    recorder = Recorder(config, cache, plan, out, inputs)
    steps_to_go = (first_step, plan.num_steps)
    with (
        closing(batches_of_sources(config, cache, plan.sources, plan.device, *steps_to_go)) as stream,
        matmul_precision(config.matmul_precision),
        stop_on_signals() as stop_asked,
        recorder.watching(stream, first_step, running) as watched,
    ):
        events = Events(log=recorder.log, save=recorder.save, failed=recorder.failed, stop_asked=stop_asked)
        done = train(config, running, watched, inputs, first_step, plan.num_steps, events)
    if not done:
        raise KeyboardInterrupt
    for trainee in running:
        if failure_before(out / trainee.name, plan.num_steps) is None:
            recorder.finished_sae(trainee).save(out / trainee.name / SAE_FOLDER)


def _running(trainees: Sequence[Trainee], step: int, out: Path) -> list[Trainee]:
    """Those that had not failed before ``step`` steps were done."""
    return [trainee for trainee in trainees if failure_before(out / trainee.name, step) is None]


def _last_good(steps: Sequence[int], trainees: Sequence[Trainee], inputs: Inputs, out: Path) -> int:
    """The first of ``steps`` whose checkpoints are whole; a warning names the damage in those before it.

    Raises:
        SaecacheError: none is whole. The message says how to start again.
    """
    damages: list[str] = []
    for step in steps:
        try:
            for trainee in _running(trainees, step, out):
                check_checkpoint(out / trainee.name, step, trainee, inputs.of(trainee.reading))
        except UsageError as error:
            damages.append(f"step {step}: {error}")
            continue
        for damage in damages:
            logger.warning("a checkpoint is not used (%s); continuing from step %d instead", damage, step)
        return step
    listed = "\n".join(f"  - {damage}" for damage in damages)
    folders = " ".join(str(out / trainee.name / FOLDER) for trainee in trainees)
    raise SaecacheError(
        f"no checkpoint of {out} can be used:\n{listed}\nPut whole ones back, continue with the version of "
        f"saecache that wrote them, or remove the folders {folders} to train from the start"
    )


def _make_trainees(
    config: TrainConfig, cache: ActivationCache, plan: RunPlan, *, fresh: bool
) -> list[Trainee]:
    centres = {source: torch.zeros(source.width) for source in plan.sources}
    if fresh and config.initialisation.decoder_bias != "zeros":
        centres = {source: _centre(config, cache, plan, source) for source in plan.sources}
    trainees = []
    for job in plan.jobs:
        seed = config.seed if job.variant.seed is None else job.variant.seed
        b_in, b_dec = (
            torch.cat([centres[source] for source in sources]).to(plan.device)
            for sources in (job.reading.inputs, job.reading.targets)
        )
        parameters = initial_parameters(job.plan, seed, b_dec, config.initialisation, b_in)
        trainees.append(Trainee(job.variant, job.plan, seed, config.optimizer, parameters, job.reading))
    return trainees


def _centre(config: TrainConfig, cache: ActivationCache, plan: RunPlan, source: Source) -> torch.Tensor:
    """The centre of the first training rows of ``source``, [width]."""
    rows = min(config.initialisation.median_rows, plan.rows)
    sample = cache.batches(
        source.hook, rows, normalization=source.normalization, sink_ratio=config.sink_ratio
    )
    return centre_of(next(sample), config.initialisation.decoder_bias)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set the precision of torch's float32 products inside the block, and restore it afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
