"""Check a config against a cache and plan the run: all problems are found before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...common.devices import choose_device
from ...common.errors import UsageError
from ...distributed import world
from ...store.reading.reader import ActivationCache
from ..engine.feed import num_steps, usable_rows
from ..engine.reading import Source
from ..variants.base.variant import Plan, Variant
from .config import ExpectedCache, TrainConfig
from .jobs import Job, choose_readings, encoded_by, make_jobs, predicted_by, problems_of_reading
from .layout import Layout, layout_problems
from .sizes import Memory, memory_problems, most_bytes_on_disk
from .starting import Start
from .trackers import missing_trackers

MIN_FINGERPRINT = 8  # characters of a prefix that still tell caches apart


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run whose settings fit its cache.

    ``jobs`` has every SAE that is trained, and ``layout`` says which of them this process trains. ``init`` is
    the identity of the SAE that they start from, if any.
    """

    device: torch.device
    rows: int  # training rows of an epoch
    num_steps: int
    jobs: tuple[Job, ...]
    memory: Memory
    disk_bytes: int  # of the checkpoints and SAEs of all processes, at most
    init: Mapping[str, Any] | None = None
    layout: Layout = field(default_factory=Layout)

    @property
    def hook(self) -> str:
        """The hook that the first SAE encodes: the only one unless the config names several."""
        return self.jobs[0].reading.inputs[0].hook

    @property
    def hooks(self) -> list[str]:
        """All hooks whose rows the run reads, in whichever process. A sink at one is left out of all."""
        return hooks_of(sources_of(self.jobs))

    @property
    def own_jobs(self) -> tuple[Job, ...]:
        """The SAEs that this process trains."""
        return self.jobs[self.layout.own]

    @property
    def own_rows(self) -> slice:
        """The rows of every batch that this process reads and trains on."""
        return self.jobs[0].plan.own_rows

    @property
    def sources(self) -> tuple[Source, ...]:
        """All rows that this process reads, each once."""
        return sources_of(self.own_jobs)


def plan_run(config: TrainConfig, cache: ActivationCache, layout: Layout | None = None) -> RunPlan:
    """Check ``config`` against ``cache``; ``layout`` is this process's place among several.

    Raises:
        UsageError: some settings cannot work; the message lists them all, and how to fix each.
    """
    layout = layout or Layout()
    problems = unexpected(config.expect, cache)
    start = None if config.init is None else Start.load(config.init)
    readings = choose_readings(config, cache, None if start is None else start.sae.cfg.hook)
    sources = list(dict.fromkeys(source for reading in readings for source in reading.sources))
    rows = usable_rows(config, cache, hooks_of(sources))
    if config.batch_rows > rows:
        kept = (
            "of the cache" if config.sink_ratio is None else f"that sink_ratio={config.sink_ratio:g} leaves"
        )
        problems.append(
            f"batch_rows={config.batch_rows} is more than the {rows} training rows {kept}: lower batch_rows"
        )
        raise UsageError(_listed(problems))
    steps = num_steps(config, rows)
    if steps < 1:
        problems.append(
            f"the run would be shorter than one batch of {config.batch_rows} rows: "
            "raise epochs, num_rows or steps, or lower batch_rows"
        )
    like = None if start is None else start.sae.cfg.num_latents
    jobs = make_jobs(config, readings, steps, layout, like)
    if unshared := layout_problems(layout, [job.plan for job in jobs]):
        raise UsageError(_listed([*problems, *unshared]))
    device = choose_device(config.device, float64=True, local_rank=world().number_of_gpu)
    plans = [job.plan for job in jobs[layout.own]]
    memory = Memory.of(plans, sources_of(jobs[layout.own]))
    if too_large := memory_problems(memory, plans, device):
        raise UsageError(_listed([*problems, *too_large]))  # a variant's own check may take memory too
    for job in jobs:
        variant, plan = job.variant, job.plan
        found = [*problems_of_reading(job, config), *problems_of_rows(variant, plan)]
        found += [*too_many_active(variant, plan), *variant.problems(plan)]
        if start is not None:
            found += start.problems(variant, plan, encoded_by(job, cache), predicted_by(job, cache))
        problems += [f"variant {job.name}: {problem}" for problem in found]
    problems += calibration_problems(config, cache)
    problems += missing_trackers(config.log)
    if problems:
        raise UsageError(_listed(problems))
    return RunPlan(
        device=device,
        rows=rows,
        num_steps=steps,
        jobs=jobs,
        memory=memory,
        disk_bytes=most_bytes_on_disk((job.plan for job in jobs), config.checkpoint, steps),
        init=None if start is None else start.identity,
        layout=layout,
    )


def sources_of(jobs: Sequence[Job]) -> tuple[Source, ...]:
    """All rows that ``jobs`` read, each once."""
    return tuple(dict.fromkeys(source for job in jobs for source in job.reading.sources))


def hooks_of(sources: Sequence[Source]) -> list[str]:
    """The hooks of ``sources``, each once."""
    return list(dict.fromkeys(source.hook for source in sources))


def too_many_active(variant: Variant, plan: Plan) -> list[str]:
    """A message if a variant's ``k`` is not smaller than its number of latents."""
    k = getattr(variant, "k", None)
    if k is None or k < plan.num_latents:
        return []
    return [
        f"k={k} must be smaller than the number of latents, {plan.num_latents}: lower k, or raise num_latents"
    ]


def problems_of_rows(variant: Variant, plan: Plan) -> list[str]:
    """A message if processes would share the rows of a batch, which the variant's rule does not expect."""
    if plan.row_group.size == 1 or variant.shares_rows:
        return []
    return [
        f"parallel.rows={plan.row_group.size} gives each process some rows of a batch, and the kind "
        f"{variant.kind} does not say that its rule is the same then (Variant.shares_rows): set "
        "parallel.rows to 1"
    ]


def plans_of(config: TrainConfig, cache: ActivationCache) -> list[Plan]:
    """The sizes of the SAEs of a run, before anything is known of its processes or its length.

    Raises:
        UsageError: the cache does not have the hooks, or there is no SAE to start from.
    """
    start = None if config.init is None else Start.load(config.init).sae.cfg
    readings = choose_readings(config, cache, None if start is None else start.hook)
    like = None if start is None else start.num_latents
    return [job.plan for job in make_jobs(config, readings, num_steps=1, num_latents=like)]


def calibration_problems(config: TrainConfig, cache: ActivationCache) -> list[str]:
    """The reasons why thresholds could not be calibrated at the end of the run."""
    if config.calibration is None:
        return []
    having = [v for v in config.variants if v.has_threshold]
    if not having:
        kinds = ", ".join(sorted({v.kind for v in config.variants}))
        return [f"calibration is set, but {kinds} has no threshold at inference: leave it out"]
    problems = []
    if cache.num_rows("heldout") == 0:
        problems.append("calibration is set, but the cache has no held-out rows: leave it out")
    for variant in having:
        if config.calibration.l0 is None and variant.expected_l0 is None:
            problems.append(f"variant {variant.run_name} has no l0 of its own: set calibration.l0")
    return problems


def unexpected(expect: ExpectedCache, cache: ActivationCache) -> list[str]:
    """The ways in which the cache differs from the one that the config was written for."""
    problems = []
    if expect.fingerprint is not None:
        if len(expect.fingerprint) < MIN_FINGERPRINT:
            problems.append(f"expect.fingerprint needs at least {MIN_FINGERPRINT} characters")
        elif not cache.fingerprint.startswith(expect.fingerprint):
            problems.append(
                f"expect.fingerprint is {expect.fingerprint}, but the cache is {cache.fingerprint}"
            )
    if expect.model is not None:
        model = model_name(cache)
        if model != expect.model:
            problems.append(f"expect.model is {expect.model}, but the cache was harvested from {model}")
    return problems


def model_name(cache: ActivationCache) -> str | None:
    """The name of the model that the cache was harvested from; None if the cache does not say."""
    model = cache.manifest.identity.get("model")
    return model.get("name") if isinstance(model, dict) else model


def models_beside(cache: ActivationCache) -> dict[str, Any]:
    """The caches that were read beside ``cache``, by name: fingerprint and model."""
    return {
        name: {"fingerprint": other.fingerprint, "model": other.manifest.identity.get("model")}
        for name, other in cache.beside.items()
    }


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "the config does not fit the cache:\n" + "\n".join(f"  - {problem}" for problem in problems)
