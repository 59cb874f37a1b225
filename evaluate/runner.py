"""Runs an evaluation: measures SAEs on a cache and writes ``results.json``."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os.path import relpath
from pathlib import Path
from typing import Any

import torch

from ..common.devices import choose_device
from ..common.errors import UsageError
from ..common.outputs import check_file_output
from ..common.validation import validate
from ..common.versions import software_versions
from ..store import ActivationCache, open_cache
from ..train import SAE
from ..train.sae import SAEConfig
from ..train.sae_hooks import decoded_hooks, split_by_hook
from .config import EvaluateConfig
from .contexts import DecodeToken, find_places
from .definitions import DEFINITIONS
from .hook_measures import with_costs
from .language_model import Spliced, SplicedModel, check_model, measure_language_model
from .measure import measure_sae, reconstruct_cached, reconstruct_in_batches
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
    write_results,
)
from .rows import MeasuredRows, choose_rows, group_rows, warn_of_few_rows
from .sequences import ScoredSequences, choose_sequences
from .targets import Target, choose_output, find_targets_of

_SOFTWARE = ("saecache", "torch", "numpy", "transformers")


def run(
    targets: Sequence[Path | str],
    cache: ActivationCache | Path | str,
    config: EvaluateConfig | None = None,
    *,
    model: SplicedModel | None = None,
    decode_token: DecodeToken | None = None,
    reader: TextReader | None = None,
    out: Path | str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> Results:
    """Measure SAEs on held-out rows of the cache they were trained from, and write the results.

    If the cache has no held-out rows, the last tenth of its training rows is measured, and the results say
    so.

    Args:
        targets: SAE folders, or run folders (every SAE in them).
        cache: the cache the SAEs were trained from; with ``other_cache`` any of the same model and hook.
        config: the settings; the defaults when None.
        model: the language model of the cache; without it CE and KL are not measured.
        reader: the model with its tokenizer, for probing and absorption, which read other texts.
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
        cache = open_cache(cache)
    found = find_targets_of(folders, cache, other_cache=config.other_cache)
    rows, warnings = choose_rows(cache, config.max_rows)
    has_tokens = cache.manifest.tokens == "ids and documents"
    if not has_tokens:
        warnings.append("The cache holds no token ids: contexts, CE and KL were not measured.")
    groups = group_rows(cache, rows)
    configs = {target.name: target.load().cfg for target in found}
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
    sequences = None
    if model is not None and has_tokens:
        sequences = choose_sequences(cache, rows.split, rows.count, config.ce_tokens, config.seed)
        hooks = [part.hook for cfg in configs.values() for part in decoded_hooks(cfg)]
        check_model(model, cache, hooks, sequences, rows.split)
    places = None
    if has_tokens and config.num_latents:
        places = find_places(cache, rows.split, rows.first, rows.count)
    decode_token = decode_token or "⟨{}⟩".format
    measured = [
        measure_sae(
            target.load(device),
            target.name,
            cache,
            rows,
            groups,
            places,
            config,
            decode_token,
            show_progress=show_progress,
        )
        for target in found
    ]
    costs: dict[str, LanguageModelMetrics] = {}
    if model is not None and sequences is not None:
        costs = measure_language_model(
            model,
            cache,
            [
                spliced
                for target in found
                for spliced in _spliced(
                    target.name, target.load(device), cache, rows.split, sequences, config
                )
            ],
            sequences,
            split=rows.split,
            logit_bytes=config.logit_bytes,
            seed=config.seed,
            show_progress=show_progress,
        )
    probed, absorbed = _on_texts(reader, found, labelled, words, config, device, show_progress)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_versions(_SOFTWARE),
        settings=config.model_dump(mode="json"),
        cache=_summary(cache, rows),
        definitions=DEFINITIONS,
        warnings=warnings,
        saes=[
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
            for result, target in zip(measured, found, strict=True)
        ],
        overlap=_overlaps(found, config, device),
    )
    write_results(results, out)
    return results


def _warn_of_other_cache(cache: ActivationCache, configs: Mapping[str, SAEConfig]) -> list[str]:
    others = [name for name, cfg in configs.items() if cfg.cache.get("fingerprint") != cache.fingerprint]
    if not others:
        return []
    return [
        f"{', '.join(others)}: trained from another cache of the same model. Its training text is not known "
        "here: if it is the text of this cache too, then the measured documents are unseen only if both "
        "caches have the same seed and heldout_fraction."
    ]


def _check_one_hook(configs: Mapping[str, SAEConfig], *, absorption: bool) -> None:
    """Refuse probing of crosscoders, and absorption of SAEs whose decoder is not in the space of the hook.

    Raises:
        UsageError: an SAE that cannot be measured so.
    """
    for name, cfg in configs.items():
        if cfg.hooks is not None:
            raise UsageError(
                f"{name} is a crosscoder of {cfg.hook}: probing and absorption read one hook; measure it "
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


def _overlaps(targets: Sequence[Target], config: EvaluateConfig, device: torch.device) -> list[Overlap]:
    """The overlap of every pair of SAEs at the same hook; at most two are in memory at a time."""
    found = []
    for i, first in enumerate(targets[:-1]):
        a = first.load(device)
        for second in targets[i + 1 :]:
            b = second.load(device)
            if _place(a.cfg) == _place(b.cfg):
                found.append(
                    measure_overlap(
                        (first.name, a),
                        (second.name, b),
                        num_sampled=config.overlap_latents,
                        match_latents=config.match_latents,
                        seed=config.seed,
                    )
                )
    return found


def _place(cfg: SAEConfig) -> tuple[Any, ...]:
    """Where an SAE's decoder writes, and what it encodes: SAEs of one place have comparable directions."""
    return cfg.hook, cfg.d_model, cfg.target and cfg.target.hook


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
    """The SAE as the language model sees it: at the hook that it reconstructs; a crosscoder at one hook at a
    time. Where it encodes other hooks than the one that is replaced, their rows come from the cache.
    """

    def reconstruct(raw_PD: torch.Tensor) -> torch.Tensor:
        reconstruction: torch.Tensor = sae(raw_PD.to(sae.W_dec.device), input="raw")
        return reconstruction

    by_row = None
    if config.rule == "batch":
        by_row = reconstruct_in_batches(sae, cache, split, sequences.rows[sequences.spliced], config)
    parts = decoded_hooks(sae.cfg)
    if by_row is None and (sae.cfg.target is not None or len(parts) > 1):
        by_row = reconstruct_cached(sae, cache, split)
    if by_row is None or len(parts) == 1:
        return [Spliced(name=name, hook=parts[0].hook, reconstruct=reconstruct, by_row=by_row)]
    whole = by_row

    def at(hook: str) -> Spliced:
        def replace(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return split_by_hook(sae.cfg, whole(rows, numbers))[hook]

        return Spliced(name=_at(name, hook), hook=hook, reconstruct=reconstruct, by_row=replace)

    return [at(part.hook) for part in parts]


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
        hooks={name: hook.d_model for name, hook in manifest.hooks.items()},
        context=cache.context,
        normalization=cache.normalization,
        train_rows=len(cache),
        heldout_rows=cache.num_rows("heldout"),
        split=rows.split,
        rows=rows.count,
    )
