"""Check a config against a cache and plan the run: all problems are found before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...common.counts import format_bytes
from ...common.devices import choose_device
from ...common.errors import UsageError
from ...common.memory import check_memory
from ...store.reading.reader import ActivationCache
from ..engine.feed import num_steps, usable_rows
from ..variants.base.variant import Plan, Variant
from .config import ExpectedCache, TrainConfig
from .layout import Layout, layout_problems
from .starting import Start
from .trackers import missing_trackers

MIN_FINGERPRINT = 8  # characters of a prefix that still tell caches apart


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run whose settings fit its cache. ``variants`` has a plan for each of ``config.variants``.

    ``init`` is the identity of the SAE that they start from, if any. ``layout`` says which of them this
    process trains.
    """

    hook: str
    device: torch.device
    rows: int  # training rows of an epoch
    num_steps: int
    variants: tuple[Plan, ...]
    memory: "Memory"
    init: Mapping[str, Any] | None = None
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The bytes that the tensors of all variants take as long as they train, float32."""

    weights: int
    gradients: int
    moments: int  # two for each weight

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> "Memory":
        """W_enc and W_dec [F, D], b_enc [F] and b_dec [D]; a kind's own tensors of [F] are not counted."""
        weights = sum(4 * ((2 * p.d_model + 1) * p.shards.count + p.d_model) for p in plans)
        return cls(weights=weights, gradients=weights, moments=2 * weights)

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments

    def __str__(self) -> str:
        return (
            f"weights {format_bytes(self.weights)}, gradients {format_bytes(self.gradients)}, moments "
            f"{format_bytes(self.moments)}"
        )


def plan_run(config: TrainConfig, cache: ActivationCache, layout: Layout | None = None) -> RunPlan:
    """Check ``config`` against ``cache``; ``layout`` is this process's place among several.

    Raises:
        UsageError: some settings cannot work; the message lists them all, and how to fix each.
    """
    layout = layout or Layout()
    problems = unexpected(config.expect, cache)
    start = None if config.init is None else Start.load(config.init)
    hook = choose_hook(config, cache, None if start is None else start.sae.cfg.hook)
    rows = usable_rows(config, cache, hook)
    if config.batch_rows > rows:
        kept = (
            "of the cache" if config.sink_ratio is None else f"that sink_ratio={config.sink_ratio:g} leaves"
        )
        problems.append(f"batch_rows={config.batch_rows} is more than the {rows} training rows {kept}")
        raise UsageError(_listed(problems))
    steps = num_steps(config, rows)
    if steps < 1:
        problems.append(
            f"the run would be shorter than one batch of {config.batch_rows} rows: "
            "raise epochs, num_rows or steps, or lower batch_rows"
        )
    plans = [
        Plan(
            d_model=cache.d_model(hook),
            num_latents=variant.num_latents
            or config.num_latents
            or _other_size(config, cache.d_model(hook), start),
            batch_rows=config.batch_rows,
            num_steps=steps,
            batches_of_step=config.accumulate_batches,
            group=layout.group,
        )
        for variant in config.variants
    ]
    device = choose_device(config.device, float64=True)
    if unshared := layout_problems(layout, [plan.num_latents for plan in plans]):
        raise UsageError(_listed([*problems, *unshared]))
    memory = Memory.of(plans[layout.own])
    if too_large := memory_problems(memory, plans[layout.own], device):
        raise UsageError(_listed([*problems, *too_large]))  # a variant's own check may take memory too
    for variant, plan in zip(config.variants, plans, strict=True):
        found = [*too_many_active(variant, plan), *variant.problems(plan)]
        problems += [f"variant {variant.run_name}: {problem}" for problem in found]
        if start is not None:
            normalizer = cache.normalizer(hook, config.normalization)
            found = start.problems(variant, plan, hook, normalizer)
            problems += [f"variant {variant.run_name}: {problem}" for problem in found]
    problems += calibration_problems(config, cache)
    problems += missing_trackers(config.log)
    if problems:
        raise UsageError(_listed(problems))
    return RunPlan(
        hook=hook,
        device=device,
        rows=rows,
        num_steps=steps,
        variants=tuple(plans),
        memory=memory,
        init=None if start is None else start.identity,
        layout=layout,
    )


def memory_problems(memory: Memory, plans: Sequence[Plan], device: torch.device) -> list[str]:
    """The reasons why the tensors of the run do not fit into the memory that is available now.

    Initial weights are drawn on the CPU, two matrices of one variant at a time, whatever the device.
    """
    largest = max(plans, key=lambda plan: plan.num_latents)
    shape = f"{largest.num_latents:,} latents of width {largest.d_model}"
    what = f"training {f'{len(plans)} variants of up to ' if len(plans) > 1 else ''}{shape} ({memory})"
    fix = f"lower num_latents or expansion_factor{', or train fewer variants at a time' * (len(plans) > 1)}"
    needs = [(memory.total, device, what)]
    if device.type != "cpu":
        drawn = 2 * 4 * largest.shards.count * largest.d_model
        needs.append((drawn, torch.device("cpu"), f"drawing the initial weights of {shape}"))
    problems = []
    for needed_bytes, place, who in needs:
        try:
            check_memory(needed_bytes, place, who, fix)
        except UsageError as error:
            problems.append(str(error))
    return problems


def too_many_active(variant: Variant, plan: Plan) -> list[str]:
    """A message if a variant's ``k`` is not smaller than its number of latents."""
    k = getattr(variant, "k", None)
    if k is None or k < plan.num_latents:
        return []
    return [
        f"k={k} must be smaller than the number of latents, {plan.num_latents}: lower k, or raise num_latents"
    ]


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


def choose_hook(config: TrainConfig, cache: ActivationCache, started_at: str | None = None) -> str:
    """The configured hook, or the cache's only one, or the one of the SAE that the run starts from.

    Raises:
        UsageError: the cache has no such hook, or several and the config names none.
    """
    if config.hook is not None:
        cache.d_model(config.hook)  # says which hooks there are when this is none of them
        return config.hook
    if len(cache.hooks) == 1:
        return cache.hooks[0]
    if started_at in cache.hooks:
        return started_at
    raise UsageError(f"the cache has several hooks; set hook to one of {', '.join(cache.hooks)}")


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


def _other_size(config: TrainConfig, d_model: int, start: Start | None) -> int:
    """The number of latents where the config does not name it: of the expansion factor, or of ``init``."""
    if config.expansion_factor is not None:
        return config.expansion_factor * d_model
    assert start is not None, "the config gives one of the three"
    return start.sae.cfg.num_latents


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "the config does not fit the cache:\n" + "\n".join(f"  - {problem}" for problem in problems)
