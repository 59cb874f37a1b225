"""``run(config, cache, out)``, which is ``saecache.train``: plan, start or resume, train and save."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ...common.counts import format_bytes
from ...common.errors import SaecacheError, UsageError
from ...common.interrupts import stop_on_signals
from ...common.memory import explain_out_of_memory
from ...common.torch_defaults import torch_defaults
from ...common.validation import validate
from ...distributed import world
from ...distributed.group import ALONE, Group
from ...store.reading.reader import ActivationCache, open_cache
from ..engine.feed import batches_of_sources
from ..engine.loop import Events, train
from ..engine.metrics import MetricsFile
from ..engine.reading import Inputs, Source
from ..engine.trainee import Trainee
from ..run_files import METRICS_FILE
from ..sae import SAE_FOLDER
from .checkpoint import (
    FOLDER,
    check_checkpoint,
    failure_before,
    forget_failure,
    load_checkpoint,
    resume_steps,
    save_sae,
)
from .config import TrainConfig
from .folder import claim, mark_finished, parallel_identity
from .initialisation import centre_of, initial_parameters
from .jobs import encoded_by, num_jobs, predicted_by
from .layout import Layout, choose_layout
from .planning import RunPlan, plan_run, plans_of
from .recorder import Recorder
from .starting import Start

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


@torch_defaults()
@torch.inference_mode(False)  # its tensors could not change in the threads of a step
def run(
    config: TrainConfig | Mapping[str, Any],
    cache: ActivationCache | Path | str,
    out: Path | str | None = None,
) -> TrainResult:
    """Train every variant of ``config`` on ``cache``; continue an unfinished run of both in ``out``.

    On Ctrl-C, and on the SIGTERM that Slurm and spot machines send, it finishes the step, saves a checkpoint
    and raises KeyboardInterrupt. The same call continues, and ends with the same bytes as a run that was
    never stopped.

    Returns:
        A variant whose loss or gradient is not finite stops without an exception, and is in ``failed``.

    Raises:
        UsageError: settings that cannot be or do not fit the cache, or ``out`` holds something else. Nothing
            is written.
        CorruptCacheError: a shard of the cache is damaged.
        SaecacheError: the disk is full or gone. The same call continues once it is back.
        KeyboardInterrupt: it was stopped, and has saved a checkpoint.
    """
    config = validate(TrainConfig, config, "config")
    cache = cache if isinstance(cache, ActivationCache) else open_cache(cache, group=world().everyone)
    cache = cache.with_beside(config.beside, world().everyone)
    if config.cache_rows is not None:
        cache = cache.head(config.cache_rows)
    everyone = world().everyone
    with everyone.together():
        sizes = partial(plans_of, config, cache)
        layout = choose_layout(config.parallel, num_jobs(config, cache), world(), sizes)
    with everyone.together():
        plan = plan_run(config, cache, layout)
    logger.info("the run takes %s of memory: %s", format_bytes(plan.memory.total), plan.memory)
    if everyone.size > 1:
        logger.info("%d processes: %s", everyone.size, layout)
    row_groups = layout.row_group.size
    out = Path(out) if out is not None else default_folder(config, cache, plan.init, row_groups)

    def results() -> tuple[dict[str, str | None], dict[str, dict[str, Any]]]:
        reasons = {job.name: failure_before(out / job.name, plan.num_steps) for job in plan.jobs}
        return reasons, MetricsFile(out / METRICS_FILE).last_lines()

    try:
        with explain_out_of_memory(_how_to_save_memory(config)), ExitStack() as claims:
            names = [job.name for job in plan.jobs]
            claimed = claim(out, config, cache, names, plan.disk_bytes, plan.init, row_groups)
            finished = everyone.on_first(lambda: claims.enter_context(claimed))
            if not finished:
                _train(config, cache, plan, out)
                everyone.on_first(lambda: mark_finished(out))
            failed, last_lines = everyone.on_first(results)
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


def default_folder(
    config: TrainConfig,
    cache: ActivationCache,
    init: Mapping[str, Any] | None = None,
    row_groups: int = 1,
) -> Path:
    """``runs/<first variant>-<hash>`` with a hash of config and cache, so that running again resumes.

    ``init`` identifies the SAE that the run starts from, whose path does not matter; nor do those of caches.
    ``row_groups`` is as for :func:`.folder.claim`.
    """
    identity = cache.fingerprint + config.model_dump_json(exclude={"init", "parallel", "beside"})
    identity += "" if init is None else json.dumps(init, sort_keys=True)
    identity += json.dumps(parallel_identity(row_groups)) if row_groups > 1 else ""
    return Path("runs") / f"{config.variants[0].run_name}-{sha256(identity.encode('utf-8')).hexdigest()[:8]}"


def _train(config: TrainConfig, cache: ActivationCache, plan: RunPlan, out: Path) -> None:
    """Everything between an empty or interrupted folder and a finished one."""
    everyone, group = plan.layout.everyone, plan.layout.grid
    inputs = Inputs([job.reading for job in plan.own_jobs], plan.device, plan.layout.row_group)
    folders = [out / job.name for job in plan.jobs]
    steps = everyone.on_first(lambda: resume_steps(folders, plan.num_steps))
    trainees = _make_trainees(config, cache, plan, fresh=not steps)
    first_step = _last_good(steps, trainees, inputs, out, plan.layout) if steps else 0
    running = _running(trainees, first_step, out, group)
    for trainee in running:
        group.on_first(partial(forget_failure, out / trainee.name))
        if first_step:
            with group.together():
                load_checkpoint(out / trainee.name, first_step, trainee, inputs.of(trainee.reading))
    if first_step and everyone.is_first:
        logger.info("resuming %s after step %d of %d", out, first_step, plan.num_steps)
    used = plan.num_steps * config.accumulate_batches / (plan.rows // config.batch_rows)
    if used > 1 and everyone.is_first:
        logger.warning("every training row is used %.1f times", used)
    recorder = Recorder(config, cache, plan, out, inputs)
    steps_to_go = (first_step, plan.num_steps)
    with (
        closing(
            batches_of_sources(
                config, cache, plan.sources, plan.device, *steps_to_go, plan.hooks, plan.own_rows
            )
        ) as stream,
        matmul_precision(config.matmul_precision),
        stop_on_signals() as stop_asked,
        recorder.watching(stream, first_step, running) as watched,
    ):
        events = Events(
            log=recorder.log,
            save=recorder.save,
            failed=recorder.failed,
            stop_asked=lambda: everyone.any(stop_asked()),
            any_running=lambda running: everyone.any(bool(running)),
        )
        done = train(config, running, watched, inputs, first_step, plan.num_steps, events)
    if not done:
        raise KeyboardInterrupt
    for trainee in _running(running, plan.num_steps, out, group):
        save_sae(recorder.finished_sae(trainee), trainee, out / trainee.name / SAE_FOLDER)
    everyone.barrier()


def _running(trainees: Sequence[Trainee], step: int, out: Path, group: Group) -> list[Trainee]:
    """Those that had not failed before ``step`` steps were done."""
    found = group.on_first(lambda: [failure_before(out / trainee.name, step) for trainee in trainees])
    return [trainee for trainee, reason in zip(trainees, found, strict=True) if reason is None]


def _last_good(
    steps: Sequence[int], trainees: Sequence[Trainee], inputs: Inputs, out: Path, layout: Layout
) -> int:
    """The first of ``steps`` whose checkpoints are whole; a warning names the damage in those before it.

    Raises:
        SaecacheError: none is whole. The message says how to start again.
    """
    everyone, group = layout.everyone, layout.grid

    def damage_of(step: int) -> str:
        """What is damaged in the checkpoints of this group's variants; nothing: an empty string."""
        try:
            for trainee in _running(trainees, step, out, ALONE):
                check_checkpoint(out / trainee.name, step, trainee, inputs.of(trainee.reading))
        except UsageError as error:
            return f"step {step}: {error}"
        return ""

    damages: list[str] = []
    for step in steps:
        found = everyone.gather_values(damage_of(step) if group.is_first else "")
        if any(found):
            damages.append(next(filter(None, found)))
            continue
        for damage in damages if everyone.is_first else []:
            logger.warning("a checkpoint is not used (%s); continuing from step %d instead", damage, step)
        return step
    with everyone.together():
        raise _nothing_whole(damages, trainees, out)
    raise AssertionError


def _nothing_whole(damages: Sequence[str], trainees: Sequence[Trainee], out: Path) -> SaecacheError:
    """The error for a run all of whose checkpoints are damaged."""
    listed = "\n".join(f"  - {damage}" for damage in damages)
    folders = " ".join(str(out / trainee.name / FOLDER) for trainee in trainees)
    return SaecacheError(
        f"no checkpoint of {out} can be used:\n{listed}\nPut whole ones back, continue with the version of "
        f"saecache that wrote them, or remove the folders {folders} to train from the start"
    )


def _make_trainees(
    config: TrainConfig, cache: ActivationCache, plan: RunPlan, *, fresh: bool
) -> list[Trainee]:
    start = Start.load(config.init) if fresh and config.init is not None else None
    centres = {source: torch.zeros(source.width) for source in plan.sources}
    if fresh and start is None and config.initialisation.decoder_bias != "zeros":
        centres = {source: _centre(config, cache, plan, source) for source in plan.sources}
    trainees = []
    for job in plan.own_jobs:
        seed = config.seed if job.variant.seed is None else job.variant.seed
        own: dict[str, torch.Tensor] = {}
        if start is None:
            b_in, b_dec = (
                torch.cat([centres[source] for source in sources]).to(plan.device)
                for sources in (job.reading.inputs, job.reading.targets)
            )
            parameters = initial_parameters(job.plan, seed, b_dec, config.initialisation, b_in)
        else:
            parameters, own = start.tensors(
                job.variant, job.plan, encoded_by(job, cache), predicted_by(job, cache)
            )
            parameters = {name: tensor.to(plan.device) for name, tensor in parameters.items()}
        trainee = Trainee(job.variant, job.plan, seed, config.optimizer, parameters, job.reading)
        trainee.start_at(own)
        trainees.append(trainee)
    return trainees


def _centre(config: TrainConfig, cache: ActivationCache, plan: RunPlan, source: Source) -> torch.Tensor:
    """The centre of the first training rows of ``source``, [width]."""
    rows = min(config.initialisation.median_rows, plan.rows)
    sample = cache.batches(
        source.hook,
        rows,
        normalization=source.normalization,
        sink_ratio=config.sink_ratio,
        sink_hooks=plan.hooks,
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
