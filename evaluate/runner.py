"""Runs an evaluation: measures SAEs on a cache and writes ``results.json``."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import combinations, groupby
from os.path import relpath
from pathlib import Path
from typing import Any

import torch

from ..common.devices import choose_device
from ..common.errors import UsageError
from ..common.outputs import check_file_output
from ..common.validation import validate
from ..common.versions import software_versions
from ..distributed import Group, world
from ..store import ActivationCache, open_cache
from ..train.foreign.building import imported_from
from ..train.runs.calibration import first_row_of_calibration
from ..train.sae_config import SAEConfig
from ..train.sae_hooks import decoded_hooks, encoded_hooks, place_of
from .config import EvaluateConfig
from .definitions import DEFINITIONS
from .earlier_results import keep_judged
from .hook_measures import with_costs
from .language_model import SplicedModel, check_model
from .latents.contexts import DecodeToken
from .latents.folder import latents_folder, write_latents
from .latents.logits import Unembedding
from .latents.rows import find_latent_rows
from .measure import LatentView, MeasuredSae, measure_sae
from .metrics.overlap import measure_overlap
from .probing.absorption import measure_absorption
from .probing.labelled import LabelledTexts, load_labelled
from .probing.letters import LetterWords, make_letter_words
from .probing.sparse_probing import probe_labelled
from .probing.texts import TextReader
from .record import spread_records
from .results import (
    AbsorptionResult,
    CacheSummary,
    Overlap,
    ProbingResult,
    Results,
    SaeResult,
    write_results,
)
from .rows import MeasuredRows, RowGroups, choose_rows, group_rows, warn_of_few_rows
from .sequences import choose_sequences
from .splicing import find_models, measure_costs, name_at, parts_for
from .targets import Place, Target, choose_output, find_targets_of

_SOFTWARE = ("saecache", "torch", "numpy", "transformers")


def run(
    targets: Sequence[Place] | Sequence[Target],
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
    notes: Sequence[str] = (),
    **settings: Any,
) -> Results:
    """Measure SAEs on held-out rows of the cache they were trained from, and write the results.

    If the cache has no held-out rows, the last tenth of its training rows is measured, and the results say
    so. Held-out rows that a threshold was calibrated on are left out. What a judge has said of the SAEs stays
    in the results (:mod:`.earlier_results`).

    Args:
        targets: SAE folders, run folders (every SAE in them), URLs of SAEs, or what
            :func:`.targets.find_targets` found.
        cache: the cache the SAEs were trained from; with ``other_cache`` any of the same model and hook.
        config: the settings; the defaults when None.
        model: the language model of the cache; without it CE and KL are not measured.
        models_beside: those of the caches beside it, by the caches' names, for the hooks that are theirs.
        reader: the model with its tokenizer, for probing and absorption, which read other texts.
        unembedding: the model's last weights, for the tokens that latents promote and suppress.
        decode_token: turns a token id into text for the contexts; without it they show numbers.
        out: the file to write; ``RUN_DIR/results.json`` when None.
        show_progress: progress bars and warnings on stderr.
        notes: warnings of the caller's, which the results hold too.
        settings: fields of :class:`EvaluateConfig` that replace those of ``config``, as ``max_rows=100_000``.

    Raises:
        UsageError: no SAE there, another cache than the SAE's, a model that is not the cache's, bad settings,
            a file that cannot be written; before anything is measured.
    """
    config = config or EvaluateConfig()
    if settings:
        config = validate(EvaluateConfig, config.model_dump() | settings, "what was given to evaluate.run")
    out = choose_output(targets) if out is None else Path(out)
    check_file_output(out)
    if not isinstance(cache, ActivationCache):
        cache = open_cache(cache, group=world().everyone)
    cache = cache.with_beside(config.beside, world().everyone)
    found = find_targets_of(targets, cache, other_cache=config.other_cache)
    configs = {target.name: target.load().cfg for target in found}
    rows, warnings = choose_rows(cache, min(config.max_rows, _rows_before_calibration(cache, configs)))
    has_tokens = cache.manifest.tokens == "ids and documents"
    if not has_tokens:
        warnings.append("The cache holds no token ids: contexts, CE and KL were not measured.")
    elif without := [name for name in cache.beside if name not in (models_beside or {})]:
        warnings.append(
            f"CE and KL were not measured at hooks of {', '.join(without)}: their models were not run."
        )
    warnings += notes
    groups = group_rows(cache, rows)
    warnings += warn_of_few_rows(rows, groups, configs) + _warn_of_other_cache(cache, configs)
    if show_progress:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    device = choose_device(config.device, float64=True, local_rank=world().number_of_gpu)
    labelled = [load_labelled(source, config.probing, config.seed) for source in config.probing.data]
    if reader is None and (labelled or config.absorption):
        raise UsageError(
            "probing and absorption read texts with the language model and its tokenizer, and there is none: "
            "leave out --no-model, or give run() a reader"
        )
    if labelled or config.absorption:
        _check_texts(configs, cache, absorption=config.absorption)
    words = None
    if reader is not None:
        if labelled and reader.max_positions is not None and config.probing.context > reader.max_positions:
            raise UsageError(
                f"probing.context={config.probing.context} is longer than the {reader.max_positions} "
                "positions of the model; lower it"
            )
        words = make_letter_words(reader, config.seed) if config.absorption else None
    sequences, models = None, find_models(cache, model, models_beside or {}) if has_tokens else []
    if models:
        sequences = choose_sequences(cache, rows.split, rows.count, config.ce_tokens, config.seed)
        decoded = dict.fromkeys(part.hook for cfg in configs.values() for part in decoded_hooks(cfg))
        for one, own in models:
            check_model(one, cache, [hook for hook in decoded if hook in own], sequences, rows.split)
    view = None
    if has_tokens and config.shows_latents:
        view = LatentView(
            rows=find_latent_rows(cache, rows, config.training_rows, config.seed),
            folder=out.absolute().parent,
            decode_token=decode_token or "⟨{}⟩".format,
            unembedding=unembedding,
        )

    everyone = world().everyone
    measured: list[SaeResult] = []
    for first in range(0, len(found), everyone.size):
        wave = found[first : first + everyone.size]
        measured += _measure_wave(
            wave, cache, rows, groups, view, config, device, out, show_progress=show_progress
        )
    costs = measure_costs(
        models, found, configs, cache, rows, sequences, config, device, everyone, show_progress=show_progress
    )
    probed, absorbed = _on_texts(reader, found, labelled, words, config, device, everyone, show_progress)
    saes = [
        result.model_copy(
            update={
                "sae_dir": target.url or _relative(target.sae_dir, out.parent),
                "language_model": costs.get(target.name),
                "hooks": with_costs(
                    result.hooks,
                    {
                        h.hook: costs[at]
                        for h in result.hooks
                        if (at := name_at(target.name, h.hook)) in costs
                    },
                ),
                "probing": [by_name[target.name] for by_name in probed],
                "absorption": absorbed.get(target.name),
            }
        )
        for result, target in zip(measured, found, strict=True)
    ]
    pairs = [
        (a, b) for a, b in combinations(found, 2) if place_of(configs[a.name]) == place_of(configs[b.name])
    ]
    overlap = spread_records(everyone, pairs, partial(_overlaps, config=config, device=device), Overlap)
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
            results, kept = keep_judged(results, out)
            write_results(results, out)
            for note in kept if show_progress else []:
                print(note, file=sys.stderr)
    return results


def _measure_wave(
    wave: Sequence[Target],
    cache: ActivationCache,
    rows: MeasuredRows,
    groups: RowGroups,
    view: LatentView | None,
    config: EvaluateConfig,
    device: torch.device,
    out: Path,
    *,
    show_progress: bool,
) -> list[SaeResult]:
    """Measure as many SAEs as there are processes, or fewer. All share the rows of each; then each process
    describes the latents of one.
    """
    everyone = world().everyone
    own: list[MeasuredSae] = []
    with ExitStack() as stack:
        for owner, target in enumerate(wave):
            with everyone.together():
                sae = target.load(device)
            measured = measure_sae(
                sae, target.name, cache, rows, groups, view, config,
                stack=stack, group=everyone, owner=owner, show_progress=show_progress,
            )  # fmt: skip
            own += [] if measured is None else [measured]

        def describe(some: Sequence[MeasuredSae]) -> list[SaeResult]:
            results = []
            for one in some:
                result, latents = one.describe(cache, view, config)
                if latents is not None and config.all_latents:
                    folder = latents_folder(out, one.name)
                    write_latents(latents, folder)
                    result = result.model_copy(update={"latents_dir": _relative(folder, out.parent)})
                results.append(result)
            return results

        return spread_records(everyone, wave, lambda _: describe(own), SaeResult)


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


def _check_texts(configs: Mapping[str, SAEConfig], cache: ActivationCache, *, absorption: bool) -> None:
    """Refuse SAEs that cannot be measured on texts, which one language model reads.

    Raises:
        UsageError: an SAE encodes rows of another model, or absorption is to be measured of one whose decoder
            is not in the space of the one hook that it encodes.
    """
    for name, cfg in configs.items():
        if others := [part.hook for part in encoded_hooks(cfg) if part.hook not in cache.manifest.hooks]:
            raise UsageError(
                f"{name} encodes {', '.join(others)} too, which the model that reads the texts lacks: "
                "measure it without probing and absorption"
            )
        if absorption and cfg.shape != "autoencoder":
            to = "several hooks" if cfg.target is None else cfg.target.hook
            raise UsageError(
                f"{name} is a {cfg.shape}: absorption compares decoder rows with a probe of one hook that is "
                f"encoded, and its decoder writes to {to}; measure it without --absorption"
            )


def _on_texts(
    reader: TextReader | None,
    targets: Sequence[Target],
    labelled: Sequence[LabelledTexts],
    words: LetterWords | None,
    config: EvaluateConfig,
    device: torch.device,
    group: Group,
    show_progress: bool,
) -> tuple[list[dict[str, ProbingResult]], dict[str, AbsorptionResult]]:
    """Probing on each set of labelled texts, and absorption, by SAE.

    The texts are read once for each part of the SAEs; with one process there is one part.
    """
    if reader is None or not (labelled or words):
        return [], {}
    probed: list[dict[str, ProbingResult]] = [{} for _ in labelled]
    absorbed: dict[str, AbsorptionResult] = {}
    for some in parts_for(targets, group):
        saes = {target.name: target.load(device) for target in some}
        for results, data in zip(probed, labelled, strict=True):
            results |= probe_labelled(
                reader, saes, data, config.probing, config.seed, group=group, show_progress=show_progress
            )
        if words is not None:
            absorbed |= measure_absorption(
                reader, saes, words, config.seed, group=group, show_progress=show_progress
            )
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
