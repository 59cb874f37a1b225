"""The SAEs of a run: which hooks each reads, and what it reconstructs.

A run has one SAE for each variant and hook; with ``target`` they are transcoders. With ``crosscoder``, and
with ``target.cross_layer``, all hooks together have one SAE for each variant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...common.errors import UsageError
from ...common.hook_names import block_of, by_number
from ...store.reading.reader import ActivationCache
from ..engine.reading import Reading, Source
from ..sae_config import HookRows, SAETarget
from ..variants.base.variant import Plan, Variant
from .config import TrainConfig
from .layout import Layout

ALL_HOOKS = "all"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One SAE of a run: a variant with its name in the run, its sizes, and what it reads."""

    variant: Variant
    plan: Plan
    reading: Reading

    @property
    def name(self) -> str:
        return self.variant.run_name


def choose_hooks(config: TrainConfig, cache: ActivationCache, started_at: str | None = None) -> list[str]:
    """The hooks that the config names, those of a pattern by layer.

    Without a name it is the only hook, or ``started_at``, that of the SAE that the run starts from.

    Raises:
        UsageError: the cache has no such hook, or several and the config names none.
    """
    if config.hook is None and len(cache.hooks) == 1:
        return list(cache.hooks)
    if config.hook is None and started_at in cache.hooks:
        return [started_at]
    if config.hook is None:
        raise UsageError(
            f"the cache has several hooks; set hook to one of {', '.join(cache.hooks)}, or to all for an SAE "
            "at each"
        )
    found: list[str] = []
    in_order = sorted(cache.hooks, key=by_number)
    for wanted in [config.hook] if isinstance(config.hook, str) else config.hook:
        if wanted == ALL_HOOKS:
            found += in_order
        elif "*" in wanted:
            matching = [hook for hook in in_order if fnmatchcase(hook, wanted)]
            if not matching:
                raise UsageError(f"no hook of the cache matches {wanted}; it has {', '.join(cache.hooks)}")
            found += matching
        else:
            cache.d_model(wanted)  # says which hooks there are when this is none of them
            found.append(wanted)
    return list(dict.fromkeys(found))


def num_jobs(config: TrainConfig, cache: ActivationCache) -> int:
    """The number of SAEs that a run of ``config`` trains.

    Raises:
        UsageError: the cache does not have the hooks.
    """
    one = config.hook is None or config.crosscoder or is_cross_layer(config)
    return len(config.variants) * (1 if one else len(choose_hooks(config, cache)))


def is_cross_layer(config: TrainConfig) -> bool:
    """Whether the run trains cross-layer transcoders."""
    return config.target is not None and config.target.cross_layer


def choose_readings(
    config: TrainConfig, cache: ActivationCache, started_at: str | None = None
) -> list[Reading]:
    """What the SAEs of the run read: one reading for each hook, or one in all for crosscoders.

    ``started_at`` is as for :func:`choose_hooks`.

    Raises:
        UsageError: a hook or a target that is not in the cache, or hooks that do not go together.
    """
    hooks = choose_hooks(config, cache, started_at)
    sources = [Source(hook=h, normalization=config.normalization, width=cache.d_model(h)) for h in hooks]
    if config.crosscoder:
        if len(sources) == 1:
            raise UsageError(
                f"a crosscoder needs two hooks or more, and hook gives {hooks[0]} alone; the cache has "
                f"{', '.join(cache.hooks)}"
            )
        return [Reading.autoencoder(*sources)]
    if config.target is None:
        return [Reading.autoencoder(source) for source in sources]
    targets = [_target_of(config, cache, source.hook) for source in sources]
    if config.target.cross_layer:
        _check_layers(sources, targets)
        return [Reading(inputs=tuple(sources), targets=tuple(targets))]
    return [Reading(inputs=(source,), targets=(to,)) for source, to in zip(sources, targets, strict=True)]


def _check_layers(sources: Sequence[Source], targets: Sequence[Source]) -> None:
    """Make sure that hooks can be the layers of a cross-layer transcoder.

    Raises:
        UsageError: there is one only, two have the same target, or their widths differ.
    """
    if len(sources) == 1:
        raise UsageError(
            f"a cross-layer transcoder needs two hooks or more, and hook gives {sources[0].hook} alone: set "
            "hook to a list or a pattern, as mlp_in.*, or target.cross_layer=false"
        )
    if len(set(targets)) < len(targets):
        raise UsageError(
            f"target.hook gives {targets[0].hook} for several hooks, and every layer of a cross-layer "
            "transcoder needs a target of its own: put * in the place of the layer's number, as mlp_out.*"
        )
    for what, layers in (("hooks", sources), ("targets", targets)):
        if len({source.width for source in layers}) > 1:
            widths = ", ".join(f"{source.hook}: {source.width}" for source in layers)
            raise UsageError(f"the {what} of a cross-layer transcoder must be equally wide ({widths})")


def _target_of(config: TrainConfig, cache: ActivationCache, hook: str) -> Source:
    assert config.target is not None, "the caller has checked that"
    target, kind = config.target.hook, config.target.normalization
    if "*" in target:
        block = block_of(hook)
        if block is None:
            raise UsageError(
                f"target.hook={target}: * stands for the number of the block, and hook {hook} has none; name "
                "the target in full"
            )
        target = target.replace("*", block)
    if target not in cache.hooks:
        raise UsageError(
            f"target.hook={config.target.hook}: the cache has no hook {target} for {hook}; it has "
            f"{', '.join(cache.hooks)}. Harvest both hooks into one cache, or name another cache of the same "
            "tokens (beside)"
        )
    if target == hook:
        raise UsageError(
            f"target.hook={config.target.hook} is the hook that is encoded, {hook}: leave target out for an "
            "autoencoder, or name another"
        )
    return Source(hook=target, normalization=kind, width=cache.d_model(target))


def make_jobs(
    config: TrainConfig,
    readings: Sequence[Reading],
    num_steps: int,
    layout: Layout | None = None,
    num_latents: int | None = None,
) -> tuple[Job, ...]:
    """One job for each reading and variant; with several readings the name begins with the hook.

    Args:
        layout: this process's place among those that share the SAEs; None: it is alone.
        num_latents: of an SAE for which the config names no number.
    """
    return tuple(
        _make_job(
            config, variant, reading, num_steps, layout or Layout(), num_latents, several=len(readings) > 1
        )
        for reading in readings
        for variant in config.variants
    )


def _make_job(
    config: TrainConfig,
    variant: Variant,
    reading: Reading,
    num_steps: int,
    layout: Layout,
    num_latents: int | None,
    *,
    several: bool,
) -> Job:
    chosen = variant.num_latents or config.num_latents
    if chosen is None and config.expansion_factor is not None:
        chosen = config.expansion_factor * max(source.width for source in reading.inputs)
        chosen *= len(reading.inputs) if is_cross_layer(config) else 1
    chosen = num_latents if chosen is None else chosen
    assert chosen is not None, "the config gives one of the three"
    plan = Plan(
        d_model=sum(source.width for source in reading.inputs),
        num_latents=chosen,
        batch_rows=config.batch_rows,
        num_steps=num_steps,
        batches_of_step=config.accumulate_batches,
        d_target=None if config.target is None else sum(source.width for source in reading.targets),
        skip=config.target is not None and config.target.skip,
        free_decoder=config.initialisation.decoder == "zeros",
        hook_widths=tuple(source.width for source in reading.inputs) if config.crosscoder else (),
        num_layers=len(reading.inputs) if is_cross_layer(config) else 1,
        group=layout.group,
        row_group=layout.row_group,
        grid=layout.grid,
    )
    if several:
        hook = re.sub(r"[^A-Za-z0-9._=-]", "-", reading.inputs[0].hook)
        variant = variant.model_copy(update={"name": f"{hook}-{variant.run_name}"})
    return Job(variant=variant, plan=plan, reading=reading)


def problems_of_reading(job: Job, config: TrainConfig) -> list[str]:
    """The reasons why a variant cannot be what the config asks for, and how to fix them."""
    problems, plan = [], job.plan
    free = plan.free_decoder
    if plan.num_latents % plan.num_layers:
        problems.append(
            f"{plan.num_latents} latents cannot be divided among {plan.num_layers} layers: set num_latents "
            f"to a multiple of {plan.num_layers}, or expansion_factor"
        )
    if free and job.variant.needs_unit_decoder:
        problems.append(
            "initialisation.decoder=zeros frees the norms of W_dec, and its penalty would fade while they "
            "grow: take decoder=free (relu), or initialisation.decoder=directions"
        )
    tied = config.init is None and config.initialisation.encoder == "tied" and not free
    if tied and plan.d_decoded != plan.d_encoder:
        problems.append(
            f"W_enc of width {plan.d_encoder} cannot start as a multiple of W_dec of width "
            f"{plan.d_decoded}: set initialisation.encoder=independent, or initialisation.decoder=zeros"
        )
    return problems


def encoded_by(job: Job, cache: ActivationCache) -> tuple[HookRows, ...]:
    """The hooks whose rows the SAE encodes, as its config names them."""
    return tuple(_rows_of(source, cache) for source in job.reading.inputs)


def predicted_by(job: Job, cache: ActivationCache) -> tuple[SAETarget, ...]:
    """What a transcoder predicts, as its config names it: a target for each layer; none for other SAEs."""
    if job.plan.d_target is None:
        return ()
    found = (_rows_of(target, cache).model_dump() for target in job.reading.targets)
    return tuple(SAETarget(**rows, skip=job.plan.skip) for rows in found)


def _rows_of(source: Source, cache: ActivationCache) -> HookRows:
    normalizer = cache.normalizer(source.hook, source.normalization)
    return HookRows(hook=source.hook, d_model=source.width, normalization=normalizer.to_dict())
