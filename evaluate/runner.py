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

from ..common.outputs import check_file_output
from ..common.validation import validate
from ..common.versions import software_versions
from ..distributed import Group, world
from ..store import ActivationCache, open_cache
from ..train.sae_hooks import place_of
from .config import EvaluateConfig
from .definitions import DEFINITIONS
from .earlier_results import keep_earlier
from .hook_measures import with_costs
from .language_model import SplicedModel
from .latents.contexts import DecodeToken
from .latents.folder import latents_folder, write_latents
from .latents.logits import Unembedding
from .measure import MeasuredSae, measure_sae
from .metrics.overlap import measure_overlap
from .preparation import Evaluation, Models, prepare_evaluation
from .probing.absorption import measure_absorption
from .probing.sparse_probing import probe_labelled
from .probing.texts import TextReader
from .recovery import compare_with_features
from .results import (
    AbsorptionResult,
    CacheSummary,
    Overlap,
    ProbingResult,
    Results,
    SaeResult,
    spread_records,
    write_results,
)
from .rows import MeasuredRows
from .splicing import measure_costs, name_at, parts_for
from .synthetic import HOOK as SYNTHETIC_HOOK
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
    in the results, and a file of results that holds more than these is copied first
    (:mod:`.earlier_results`).

    At most the first ``config.max_rows`` rows are measured. ``<name>.latents/`` beside ``out`` gets what is
    known of all latents, unless ``config.all_latents`` is false.

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
    models = Models(
        spliced=model,
        beside=models_beside or {},
        reader=reader,
        unembedding=unembedding,
        decode_token=decode_token,
    )
    return _measure(
        prepare_evaluation(found, cache, config, models, out, notes, show_progress=show_progress),
        world().everyone,
    )


def _measure(evaluation: Evaluation, group: Group) -> Results:
    """Measure everything and write the results."""
    cache, config, found, out = evaluation.cache, evaluation.config, evaluation.targets, evaluation.out
    measured: list[SaeResult] = []
    for first in range(0, len(found), group.size):
        measured += _measure_wave(found[first : first + group.size], evaluation, group)
    costs = measure_costs(
        evaluation.models,
        found,
        evaluation.configs,
        cache,
        evaluation.rows,
        evaluation.sequences,
        config,
        evaluation.device,
        group,
        show_progress=evaluation.show_progress,
    )
    probed, absorbed = _on_texts(evaluation, group)
    saes = [
        result.model_copy(
            update={
                "sae_dir": target.url or _relative(target.sae_dir, out.parent),
                "language_model": costs.get(target.name),
                "hooks": with_costs(
                    result.hooks,
                    {
                        one.hook: costs[at]
                        for one in result.hooks
                        if (at := name_at(target.name, one.hook)) in costs
                    },
                ),
                "probing": [by_name[target.name] for by_name in probed],
                "absorption": absorbed.get(target.name),
            }
        )
        for result, target in zip(measured, found, strict=True)
    ]
    places = {target.name: place_of(evaluation.configs[target.name]) for target in found}
    pairs = [(a, b) for a, b in combinations(found, 2) if places[a.name] == places[b.name]]
    overlaps = partial(_overlaps, config=config, device=evaluation.device)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_versions(_SOFTWARE),
        settings=config.model_dump(mode="json"),
        cache=_summary(cache, evaluation.rows),
        definitions=DEFINITIONS,
        warnings=evaluation.warnings,
        saes=saes,
        overlap=spread_records(group, pairs, overlaps, Overlap),
    )
    with group.together():
        if group.is_first:
            results, kept = keep_earlier(results, out)
            write_results(results, out)
            for note in kept if evaluation.show_progress else []:
                print(note, file=sys.stderr)
    return results


def _measure_wave(wave: Sequence[Target], evaluation: Evaluation, group: Group) -> list[SaeResult]:
    """Measure as many SAEs as there are processes, or fewer. All share the rows of each; then each process
    describes the latents of one.
    """
    cache, config, view = evaluation.cache, evaluation.config, evaluation.view
    own: list[MeasuredSae] = []
    with ExitStack() as stack:
        for owner, target in enumerate(wave):
            with group.together():
                sae = target.load(evaluation.device)
            measured = measure_sae(
                sae, target.name, cache, evaluation.rows, evaluation.groups, view, config,
                stack=stack, group=group, owner=owner, show_progress=evaluation.show_progress,
            )  # fmt: skip
            own += [] if measured is None else [measured]

        def describe(some: Sequence[MeasuredSae]) -> list[SaeResult]:
            results = []
            for one in some:
                result, latents = one.describe(cache, view, config)
                if latents is not None and config.all_latents:
                    folder = latents_folder(evaluation.out, one.name)
                    write_latents(latents, folder)
                    result = result.model_copy(
                        update={"latents_dir": _relative(folder, evaluation.out.parent)}
                    )
                truth, cfg, codes = evaluation.truth, one.sae.cfg, one.measures.codes
                if truth is not None and cfg.shape == "autoencoder" and cfg.hook == SYNTHETIC_HOOK:
                    recovery = compare_with_features(one.sae, truth, codes.density(), codes.num_rows)
                    result = result.model_copy(update={"recovery": recovery})
                results.append(result)
            return results

        return spread_records(group, wave, lambda _: describe(own), SaeResult)


def _on_texts(
    evaluation: Evaluation, group: Group
) -> tuple[list[dict[str, ProbingResult]], dict[str, AbsorptionResult]]:
    """Probing on each set of labelled texts, and absorption, by SAE.

    The texts are read once for each part of the SAEs; with one process there is one part.
    """
    reader, labelled, words = evaluation.reader, evaluation.labelled, evaluation.words
    if reader is None or not (labelled or words):
        return [], {}
    config, show_progress = evaluation.config, evaluation.show_progress
    probed: list[dict[str, ProbingResult]] = [{} for _ in labelled]
    absorbed: dict[str, AbsorptionResult] = {}
    for some in parts_for(evaluation.targets, group):
        saes = {target.name: target.load(evaluation.device) for target in some}
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
