"""Write what a run produces while it trains: metrics, checkpoints, failures and the progress bar."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...store.reading.reader import ActivationCache
from ..engine.loop import Clock
from ..engine.metrics import MetricsFile, heldout_metrics
from ..engine.reading import BatchRows, Inputs, Source
from ..engine.schedule import learning_rate_factor
from ..engine.trainee import DivergedError, Trainee, dead_latents
from ..run_files import METRICS_FILE
from ..sae import SAE
from ..sae_config import FORMAT_OF_SEVERAL_HOOKS, FORMAT_VERSION, SAEConfig
from ..sae_hooks import name_of, normalization_of
from .calibration import calibrated_on, rows_for_calibration
from .checkpoint import FOLDER as CHECKPOINTS
from .checkpoint import prune, record_failure, save_checkpoint
from .config import TrainConfig
from .display import Display
from .folder import parallel_identity
from .jobs import encoded_by, predicted_by
from .planning import RunPlan, model_name, models_beside
from .trackers import open_trackers

logger = logging.getLogger(__name__)


class Recorder:
    """Receives the events of the training loop and writes them to the run folder ``out``."""

    def __init__(
        self, config: TrainConfig, cache: ActivationCache, plan: RunPlan, out: Path, inputs: Inputs
    ) -> None:
        self.config, self.cache, self.plan, self.out, self.inputs = config, cache, plan, out, inputs
        self.metrics = MetricsFile(out / METRICS_FILE)
        self.heldout = _heldout_rows(config, cache, plan)
        self.jobs = {job.name: job for job in plan.own_jobs}
        self.step_rows = config.batch_rows * config.accumulate_batches
        self.shown: list[dict[str, Any]] = []  # the lines of an interval that has just ended
        self.logged: list[dict[str, Any]] = []  # those of the last one that ended
        self.everyone, self.group = plan.layout.everyone, plan.layout.grid

    @contextmanager
    def watching(
        self, stream: Iterator[BatchRows], first_step: int, trainees: Sequence[Trainee]
    ) -> Iterator[Iterator[BatchRows]]:
        """The batches from ``first_step`` on, with the progress shown; later metrics are cut off before."""
        is_first = self.everyone.is_first
        self.everyone.on_first(lambda: self.metrics.cut_after(first_step))
        self.trackers = open_trackers(self.config, self.out, first_step) if is_first else []
        steps, hidden = self.plan.num_steps, not (self.config.log.progress and is_first)
        self.display = Display(self.out, steps, first_step, self.step_rows, hidden=hidden)
        try:
            with self.display.shown():
                yield self._counted(stream, trainees)
        finally:
            for tracker in self.trackers:
                tracker.close()

    def _counted(self, stream: Iterator[BatchRows], trainees: Sequence[Trainee]) -> Iterator[BatchRows]:
        """Hand on the batches; a step is done when the first batch of the next one is asked for."""
        for number, rows in enumerate(stream):
            if number and number % self.config.accumulate_batches == 0:
                self._advance(trainees)
            yield rows

    def _advance(self, trainees: Sequence[Trainee]) -> None:
        def figures() -> list[dict[str, Any]]:
            if self.everyone.size > 1:  # the processes do not ask at the same time
                return self.logged
            running = (trainee for trainee in trainees if int(trainee.interval.steps))  # none that has failed
            return self.shown or [self._figures(trainee) for trainee in running]

        self.display.advance(figures, logged=bool(self.shown))
        self.shown = []

    def log(self, step: int, trainees: Sequence[Trainee], clock: Clock) -> None:
        """Write a line per variant for the interval that ends after ``step`` steps."""
        seconds = clock.elapsed
        timing = {
            "rows_per_second": round(clock.steps * self.step_rows / seconds, 1),
            "data_wait_fraction": round(clock.waiting / seconds, 4),
            "seconds": round(seconds, 3),
        }
        lines = self._of_all([self._line(step, trainee) | timing for trainee in trainees])
        self.everyone.on_first(lambda: self.metrics.append(lines))
        for tracker in self.trackers:
            for line in lines:
                tracker.write(line)
        self.shown = self.logged = lines
        if step == self.plan.num_steps:
            self._advance(trainees)

    def save(self, step: int, trainees: Sequence[Trainee]) -> None:
        """Save a checkpoint of every variant; remove older ones only once all have the new one."""
        for trainee in trainees:
            inputs = self.inputs.of(trainee.reading)
            save_checkpoint(self.out / trainee.name, step, trainee, self.sae(trainee, step), inputs)
        self.everyone.barrier()
        for trainee in trainees:
            folder = self.out / trainee.name
            self.group.on_first(partial(prune, folder, self.config.checkpoint.keep, step))

    def failed(self, step: int, number: int, trainee: Trainee, error: DivergedError) -> None:
        """Record that a variant failed in the 0-based ``step``, at batch ``number`` of the run, and why."""
        epoch, batch = divmod(number, self.plan.rows // self.config.batch_rows)
        reason = f"{error} in step {step + 1} (batch {batch} of epoch {epoch})"
        self.group.on_first(lambda: record_failure(self.out / trainee.name, step, reason))
        log = logger.error if self.group.is_first else logger.debug
        kept = "its last checkpoint is kept; " * (self.out / trainee.name / CHECKPOINTS).is_dir()
        advice = "lower optimizer.learning_rate, and give another --out"
        log("variant %s stopped: %s; %s%s", trainee.name, reason, kept, advice)

    def sae(self, trainee: Trainee, step: int) -> SAE:
        """The SAE after ``step`` steps; it shares the trainee's tensors."""
        variant, plan = trainee.variant, trainee.plan
        job = self.jobs[trainee.name]
        rows, predicted = encoded_by(job, self.cache), predicted_by(job, self.cache)
        identity = self.cache.manifest.identity
        cfg = SAEConfig(
            format_version=FORMAT_OF_SEVERAL_HOOKS if predicted or len(rows) > 1 else FORMAT_VERSION,
            kind=variant.kind,
            name=trainee.name,
            d_model=plan.d_model,
            num_latents=plan.num_latents,
            k=variant.expected_l0,
            inference=variant.inference,
            hook=name_of(rows),
            normalization=normalization_of(rows),
            hooks=rows if len(rows) > 1 else None,
            target=predicted[0] if len(predicted) == 1 else None,
            targets=predicted if len(predicted) > 1 else None,
            variant=variant,
            cache={
                "fingerprint": self.cache.fingerprint,
                "hook": name_of(rows),
                "model": identity.get("model"),
                "model_name": model_name(self.cache),
                **({"beside": beside} if (beside := models_beside(self.cache)) else {}),
            },
            training={
                "step": step,
                "rows": step * self.step_rows,
                "batch_rows": self.config.batch_rows,
                "accumulate_batches": self.config.accumulate_batches,
                "sink_ratio": self.config.sink_ratio,
                "planned_steps": self.plan.num_steps,
                "seed": trainee.seed,
                "learning_rate": trainee.peak_learning_rate,
                "optimizer": trainee.optimizer_config.model_dump(mode="json"),
                "schedule": self.config.schedule.model_dump(mode="json"),
                **({} if self.plan.init is None else {"init": dict(self.plan.init)}),
                **parallel_identity(plan.row_group.size),
            },
        )
        tensors = {**trainee.parameters, **variant.inference_tensors(trainee.state)}
        return SAE(cfg, tensors, trainee.shards)

    def finished_sae(self, trainee: Trainee) -> SAE:
        """The SAE at the end of the run, with its threshold calibrated if the config says so."""
        sae, calibration = self.sae(trainee, self.plan.num_steps), self.config.calibration
        if calibration is None or not trainee.variant.has_threshold:
            return sae
        try:
            rows = rows_for_calibration(self.cache, calibration.rows)
            note: dict[str, Any] = {
                "l0": calibration.l0 or sae.cfg.k,
                "rows": len(rows),
                "first_row": rows.start,
            }
            sae = calibrated_on(sae, self.cache, calibration.l0, calibration.rows)
        except UsageError as error:  # no reason to lose what was trained
            log = logger.error if self.group.is_first else logger.debug
            log("%s; its threshold stays as training left it", error)
            note = {"failed": str(error)}
        cfg = sae.cfg.model_copy(update={"training": {**sae.cfg.training, "calibration": note}})
        return SAE(cfg, dict(sae.named_buffers()), sae.shards)

    def _of_all(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The lines of all variants, in their order, whichever process trains them."""
        every = self.everyone.gather_values(lines if self.group.is_first else [])
        order = {job.name: i for i, job in enumerate(self.plan.jobs)}
        return sorted(chain.from_iterable(every), key=lambda line: order[line["variant"]])

    def _figures(self, trainee: Trainee) -> dict[str, Any]:
        """Summarize the interval so far, and count the latents that are dead now."""
        dead = dead_latents(trainee.rows_since_active, self.config.dead_after_rows).sum()
        figures = trainee.interval.summary(self.inputs.of(trainee.reading))
        return {**figures, "dead": int(trainee.shards.sum(dead))}

    def _line(self, step: int, trainee: Trainee) -> dict[str, Any]:
        factor = learning_rate_factor(self.config.schedule, step - 1, self.plan.num_steps)
        line: dict[str, Any] = {
            "step": step,
            "rows": step * self.step_rows,
            "variant": trainee.name,
            **(figures := self._figures(trainee)),
            "alive": trainee.plan.num_latents - figures["dead"],
            "lr": trainee.peak_learning_rate * factor,
        }
        sae = self.finished_sae(trainee) if step == self.plan.num_steps else self.sae(trainee, step)
        if sae.threshold is not None:
            threshold = sae.shards.gather(sae.threshold) if sae.threshold.dim() else sae.threshold
            finite = threshold[threshold.isfinite()]
            line["threshold"] = float(finite.mean()) if finite.numel() else None
        every = self.config.log.heldout_every_steps or self.plan.num_steps
        if self.heldout is not None and (step % every == 0 or step == self.plan.num_steps):
            x, target = (
                side_by_side([self.heldout[source] for source in sources])
                for sources in (trainee.reading.inputs, trainee.reading.targets)
            )
            line |= heldout_metrics(sae, x, target)
        return line


def side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Rows of several hooks [n, d] as one, [n, sum of d]."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=1)


def _heldout_rows(config: TrainConfig, cache: ActivationCache, plan: RunPlan) -> dict[Source, Tensor] | None:
    """The first held-out rows, [n, width], normalized as for training; None if no row is to be measured."""
    usable = cache.num_batches(1, "heldout", sink_ratio=config.sink_ratio, sink_hooks=plan.hooks)
    rows = min(config.log.heldout_rows, usable)
    if rows == 0:
        if usable == 0 and config.log.heldout_every_steps is not None:
            logger.warning("the cache has no held-out rows: heldout_fvu and heldout_l0 are not measured")
        return None
    return {
        source: next(
            cache.batches(
                source.hook,
                rows,
                split="heldout",
                normalization=source.normalization,
                device=plan.device,
                sink_ratio=config.sink_ratio,
                sink_hooks=plan.hooks,
            )
        )
        for source in plan.sources
    }
