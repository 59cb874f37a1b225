"""Runs an evaluation: measures SAEs on a cache and writes ``results.json``."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, groupby
from os.path import relpath
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from ..common.devices import choose_device
from ..common.errors import UsageError
from ..common.outputs import check_file_output
from ..common.validation import validate
from ..common.versions import software_versions
from ..distributed import Group, world
from ..store import ActivationCache, open_cache
from ..train import SAE
from ..train.foreign.building import imported_from
from ..train.runs.calibration import first_row_of_calibration
from ..train.sae import SAEConfig
from ..train.sae_hooks import decoded_hooks, place_of, split_by_hook
from .config import EvaluateConfig
from .definitions import DEFINITIONS
from .hook_measures import with_costs
from .language_model import ModelBeside, Spliced, SplicedModel, check_model, measure_language_model
from .latents.contexts import DecodeToken
from .latents.folder import latents_folder, write_latents
from .latents.logits import Unembedding
from .latents.rows import find_latent_rows
from .measure import LatentView, measure_sae, reconstruct_cached, reconstruct_in_batches
from .metrics.overlap import measure_overlap
from .probing.absorption import measure_absorption
from .probing.labelled import LabelledTexts, load_labelled
from .probing.letters import LetterWords, make_letter_words
from .probing.sparse_probing import probe_labelled
from .probing.texts import TextReader
from .results import (
    AbsorptionResult,
    CacheSummary,
    LanguageModelMetrics,
    Overlap,
    ProbingResult,
    Results,
    SaeResult,
    write_results,
)
from .rows import MeasuredRows, choose_rows, group_rows, warn_of_few_rows
from .sequences import ScoredSequences, choose_sequences
from .targets import Target, choose_output, find_targets_of

Item = TypeVar("Item")
Result = TypeVar("Result", bound=BaseModel)

_SOFTWARE = ("saecache", "torch", "numpy", "transformers")


def run(
    targets: Sequence[Path | str],
    cache: ActivationCache | Path | str,
    config: EvaluateConfig | None = None,
    *,
    model: SplicedModel | None = None,
    models_beside: Mapping[str, SplicedModel] | None = None,
    decode_token: DecodeToken | None = None,
    reader: TextReader | None = None,
    unembedding: Unembedding | None = None,
    out: Path | str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> Results:
    """Measure SAEs on held-out rows of the cache they were trained from, and write the results.

    If the cache has no held-out rows, the last tenth of its training rows is measured, and the results say
    so. Held-out rows that a threshold was calibrated on are left out.

    Args:
        targets: SAE folders, or run folders (every SAE in them).
        cache: the cache the SAEs were trained from; with ``other_cache`` any of the same model and hook.
        config: the settings; the defaults when None.
        model: the language model of the cache; without it CE and KL are not measured.
        models_beside: those of the caches beside it, by the caches' names, for the hooks that are theirs.
        reader: the model with its tokenizer, for probing and absorption, which read other texts.
        unembedding: the model's last weights, for the tokens that latents promote and suppress.
        decode_token: turns a token id into text for the contexts; without it they show numbers.
        out: the file to write; ``RUN_DIR/results.json`` when None.
        show_progress: progress bars and warnings on stderr.
        settings: fields of :class:`EvaluateConfig` that replace those of ``config``, as ``max_rows=100_000``.

    Raises:
        UsageError: no SAE there, another cache than the SAE's, a model that is not the cache's, bad settings,
            a file that cannot be written; before anything is measured.
    """
    config = config or EvaluateConfig()
    if settings:
        config = validate(EvaluateConfig, config.model_dump() | settings, "what was given to evaluate.run")
    folders = [Path(target) for target in targets]
    out = choose_output(folders) if out is None else Path(out)
    check_file_output(out)
    if not isinstance(cache, ActivationCache):
        cache = open_cache(cache, group=world().everyone)
    cache = cache.with_beside(config.beside, world().everyone)
    found = find_targets_of(folders, cache, other_cache=config.other_cache)
    configs = {target.name: target.load().cfg for target in found}
    rows, warnings = choose_rows(cache, min(config.max_rows, _rows_before_calibration(cache, configs)))
    has_tokens = cache.manifest.tokens == "ids and documents"
    if not has_tokens:
        warnings.append("The cache holds no token ids: contexts, CE and KL were not measured.")
    elif without := [name for name in cache.beside if name not in (models_beside or {})]:
        warnings.append(
            f"CE and KL were not measured at hooks of {', '.join(without)}: their models were not run."
        )
    groups = group_rows(cache, rows)
    warnings += warn_of_few_rows(rows, groups, configs) + _warn_of_other_cache(cache, configs)
    if show_progress:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    device = choose_device(config.device, float64=True)
    labelled = [load_labelled(source, config.probing, config.seed) for source in config.probing.data]
    if reader is None and (labelled or config.absorption):
        raise UsageError(
            "probing and absorption read texts with the language model and its tokenizer, and there is none: "
            "leave out --no-model, or give run() a reader"
        )
    if labelled or config.absorption:
        _check_one_hook(configs, absorption=config.absorption)
    words = None
    if reader is not None:
        if labelled and reader.max_positions is not None and config.probing.context > reader.max_positions:
            raise UsageError(
                f"probing.context={config.probing.context} is longer than the {reader.max_positions} "
                "positions of the model; lower it"
            )
        words = make_letter_words(reader, config.seed) if config.absorption else None
    sequences, models = None, _models_of(cache, model, models_beside or {}) if has_tokens else []
    if models:
        sequences = choose_sequences(cache, rows.split, rows.count, config.ce_tokens, config.seed)
        decoded = dict.fromkeys(part.hook for cfg in configs.values() for part in decoded_hooks(cfg))
        for one, own in models:
            check_model(one, cache, [hook for hook in decoded if hook in own], sequences, rows.split)
    view = None
    if has_tokens and (config.num_latents or config.all_latents):
        view = LatentView(
            rows=find_latent_rows(cache, rows, config.training_rows, config.seed),
            folder=out.absolute().parent,
            decode_token=decode_token or "⟨{}⟩".format,
            unembedding=unembedding,
        )

    def measure(target: Target) -> SaeResult:
        result, latents = measure_sae(
            target.load(device),
            target.name,
            cache,
            rows,
            groups,
            view,
            config,
            show_progress=show_progress,
        )
        if latents is None or not config.all_latents:
            return result
        folder = latents_folder(out, target.name)
        write_latents(latents, folder)
        return result.model_copy(update={"latents_dir": _relative(folder, out.parent)})

    def measure_costs(some: Sequence[Target]) -> dict[str, LanguageModelMetrics]:
        if sequences is None:
            return {}
        every = [hook for _, own in models for hook in own]
        spliced = [
            one
            for target in some
            if any(part.hook in every for part in decoded_hooks(configs[target.name]))
            for one in _spliced(target.name, target.load(device), cache, rows.split, sequences, config)
        ]
        costs: dict[str, LanguageModelMetrics] = {}
        for language_model, own in models:
            if at_own := [one for one in spliced if one.hook in own]:
                costs |= measure_language_model(
                    language_model,
                    cache,
                    at_own,
                    sequences,
                    split=rows.split,
                    logit_bytes=config.logit_bytes,
                    seed=config.seed,
                    show_progress=show_progress,
                )
        return costs

    def measure_all(some: Sequence[Target]) -> list[SaeResult]:
        measured, costs = [measure(target) for target in some], measure_costs(some)
        probed, absorbed = _on_texts(reader, some, labelled, words, config, device, show_progress)
        return [
            result.model_copy(
                update={
                    "sae_dir": _relative(target.sae_dir, out.parent),
                    "language_model": costs.get(target.name),
                    "hooks": with_costs(
                        result.hooks,
                        {
                            h.hook: costs[at]
                            for h in result.hooks
                            if (at := _at(target.name, h.hook)) in costs
                        },
                    ),
                    "probing": [by_name[target.name] for by_name in probed],
                    "absorption": absorbed.get(target.name),
                }
            )
            for result, target in zip(measured, some, strict=True)
        ]

    everyone = world().everyone
    saes = _spread(everyone, found, measure_all, SaeResult)
    pairs = [
        (a, b) for a, b in combinations(found, 2) if place_of(configs[a.name]) == place_of(configs[b.name])
    ]
    overlap = _spread(everyone, pairs, partial(_overlaps, config=config, device=device), Overlap)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_versions(_SOFTWARE),
        settings=config.model_dump(mode="json"),
        cache=_summary(cache, rows),
        definitions=DEFINITIONS,
        warnings=warnings,
        saes=saes,
        overlap=overlap,
    )
    with everyone.together():
        if everyone.is_first:
            write_results(results, out)
    return results


def _spread(
    everyone: Group,
    items: Sequence[Item],
    measure: Callable[[Sequence[Item]], list[Result]],
    kind: type[Result],
) -> list[Result]:
    """The results of all ``items``, of which each process measures some."""
    if everyone.size == 1:
        return measure(items)

    def measure_some(some: Sequence[Item]) -> list[Any]:
        return [result.model_dump(mode="json") for result in measure(some)]

    return [kind.model_validate(found) for found in everyone.spread(items, measure_some)]


def _rows_before_calibration(cache: ActivationCache, configs: Mapping[str, SAEConfig]) -> int:
    """The number of held-out rows before those that the threshold of any of the SAEs was set on."""
    own = [cfg for cfg in configs.values() if cfg.cache.get("fingerprint") == cache.fingerprint]
    starts = [first for cfg in own if (first := first_row_of_calibration(cfg)) is not None]
    return min([*starts, max(cache.num_rows("heldout"), len(cache))])


def _warn_of_other_cache(cache: ActivationCache, configs: Mapping[str, SAEConfig]) -> list[str]:
    foreign = {name: cfg for name, cfg in configs.items() if imported_from(cfg) is not None}
    others = [
        name
        for name, cfg in configs.items()
        if name not in foreign and cfg.cache.get("fingerprint") != cache.fingerprint
    ]
    warnings = [
        f"{name}: loaded from {imported_from(cfg)}. Its model is {cfg.cache.get('model_name') or 'not named'}"
        ", and must be the cache's; the measured documents may have been among its training text."
        for name, cfg in foreign.items()
    ]
    if others:
        warnings.append(
            f"{', '.join(others)}: trained from another cache of the same model. Its training text is not "
            "known here: if it is the text of this cache too, then the measured documents are unseen only if "
            "both caches have the same seed and heldout_fraction."
        )
    return warnings


def _check_one_hook(configs: Mapping[str, SAEConfig], *, absorption: bool) -> None:
    """Refuse probing of SAEs of several hooks, and absorption of SAEs whose decoder writes to another hook.

    Raises:
        UsageError: an SAE that cannot be measured so.
    """
    for name, cfg in configs.items():
        if cfg.hooks is not None:
            raise UsageError(
                f"{name} is a {cfg.shape} of {cfg.hook}: probing and absorption read one hook; measure it "
                "without them"
            )
        if absorption and cfg.target is not None:
            raise UsageError(
                f"{name} is a transcoder: absorption compares decoder rows with a probe of {cfg.hook}, and "
                f"its decoder writes to {cfg.target.hook}; measure it without --absorption"
            )


def _on_texts(
    reader: TextReader | None,
    targets: Sequence[Target],
    labelled: Sequence[LabelledTexts],
    words: LetterWords | None,
    config: EvaluateConfig,
    device: torch.device,
    show_progress: bool,
) -> tuple[list[dict[str, ProbingResult]], dict[str, AbsorptionResult]]:
    """Probing on each set of labelled texts, and absorption, by SAE; the texts are read once for all SAEs."""
    if reader is None or not (labelled or words):
        return [], {}
    saes = {target.name: target.load(device) for target in targets}
    probed = [
        probe_labelled(reader, saes, data, config.probing, config.seed, show_progress=show_progress)
        for data in labelled
    ]
    absorbed = {}
    if words is not None:
        absorbed = measure_absorption(reader, saes, words, config.seed, show_progress=show_progress)
    return probed, absorbed


def _overlaps(
    pairs: Sequence[tuple[Target, Target]], config: EvaluateConfig, device: torch.device
) -> list[Overlap]:
    """The overlap of pairs of SAEs at the same hook; at most two SAEs are in memory at a time."""
    found = []
    for first, some in groupby(pairs, key=lambda pair: pair[0]):
        a = first.load(device)
        for _, second in some:
            found.append(
                measure_overlap(
                    (first.name, a),
                    (second.name, second.load(device)),
                    num_sampled=config.overlap_latents,
                    match_latents=config.match_latents,
                    seed=config.seed,
                )
            )
    return found


def _at(name: str, hook: str) -> str:
    """The name of a crosscoder spliced in at one of its hooks."""
    return f"{name} at {hook}"


def _spliced(
    name: str,
    sae: SAE,
    cache: ActivationCache,
    split: str,
    sequences: ScoredSequences,
    config: EvaluateConfig,
) -> list[Spliced]:
    """The SAE as the language model sees it: at the hook that it reconstructs; one of several at one at a
    time. Where it encodes other hooks than the one that is replaced, their rows come from the cache.
    """

    def reconstruct(raw_PD: torch.Tensor) -> torch.Tensor:
        reconstruction: torch.Tensor = sae(raw_PD.to(sae.W_dec.device), input="raw")
        return reconstruction

    by_row = None
    if config.rule == "batch":
        by_row = reconstruct_in_batches(sae, cache, split, sequences.rows[sequences.spliced], config)
    parts = decoded_hooks(sae.cfg)
    if by_row is None and (sae.cfg.predicted or len(parts) > 1):
        by_row = reconstruct_cached(sae, cache, split)
    if by_row is None or len(parts) == 1:
        return [Spliced(name=name, hook=parts[0].hook, reconstruct=reconstruct, by_row=by_row)]
    whole = by_row

    def at(hook: str) -> Spliced:
        def replace(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return split_by_hook(sae.cfg, whole(rows, numbers))[hook]

        return Spliced(name=_at(name, hook), hook=hook, reconstruct=reconstruct, by_row=replace)

    return [at(part.hook) for part in parts]


def _models_of(
    cache: ActivationCache, model: SplicedModel | None, beside: Mapping[str, SplicedModel]
) -> list[tuple[SplicedModel, list[str]]]:
    """The models that are run, each with the hooks that are its own, as ``cache`` names them.

    Raises:
        UsageError: a model of a cache that is not there.
    """
    if unknown := [name for name in beside if name not in cache.beside]:
        raise UsageError(
            f"models_beside has a model for {', '.join(unknown)}; the caches beside {cache.path} are "
            f"{', '.join(cache.beside) or 'none'}"
        )
    models: list[tuple[SplicedModel, list[str]]] = []
    if model is not None:
        models.append((model, list(cache.manifest.hooks)))
    for name, other in beside.items():
        models.append((ModelBeside(other, name), [f"{name}:{hook}" for hook in cache.beside[name].hooks]))
    return models


def _relative(path: Path, folder: Path) -> str:
    """``path`` from ``folder``, with forward slashes; absolute if it is on another drive."""
    try:
        return Path(relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _summary(cache: ActivationCache, rows: MeasuredRows) -> CacheSummary:
    manifest = cache.manifest
    return CacheSummary(
        path=str(cache.path),
        fingerprint=cache.fingerprint,
        identity=manifest.identity,
        counts=manifest.counts,
        hooks={hook: cache.d_model(hook) for hook in cache.hooks},
        beside={name: other.fingerprint for name, other in cache.beside.items()},
        context=cache.context,
        normalization=cache.normalization,
        train_rows=len(cache),
        heldout_rows=cache.num_rows("heldout"),
        split=rows.split,
        rows=rows.count,
    )
