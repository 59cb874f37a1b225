"""Trains a section of arms and measures its SAEs at inference: figures for each seed, and curves.

Everything that the page shows is in the JSON whose content :func:`measure_section` returns.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from arms import BY_BATCH, ONE_SEED, SECTIONS, TUNED, WITH_MODEL, Arms, with_seeds
from forms import Form

from saecache import ActivationCache, load_sae
from saecache.common.versions import software_versions
from saecache.evaluate import run as evaluate
from saecache.evaluate.metrics.overlap import measure_overlap
from saecache.evaluate.results import Results, SaeResult, read_results
from saecache.train import TrainConfig, run
from saecache.train.runs.calibration import rows_for_calibration

SHORT_OF_FORM = {"rates": 0.5, "auxiliary_k": 0.8}  # share of the form's steps
CURVE_POINTS = 40  # of a density curve, whose ranks are spaced evenly in log
FROM_LOG = ("rates",)  # measured on the last batches of training, whose rows training had not seen before
SAMPLED_LATENTS = 512  # latents of each SAE that are looked for among those of the next seed


def training_of(
    section: str,
    form: Form,
    rates: Mapping[str, float],
    zipf: Mapping[str, float],
    wanted: Container[str] | None = None,
) -> tuple[TrainConfig, Arms]:
    """The settings of a section's training, and its arms.

    Args:
        rates: peak learning rates by kind.
        wanted: names of arms; None for all.
    """
    every = SECTIONS[section](form, zipf)
    arms = {name: arm for name, arm in every.items() if wanted is None or name in wanted}
    seeds = form.seeds[:1] if section in ONE_SEED else form.seeds
    values = form.settings(round(form.steps * SHORT_OF_FORM.get(section, 1)))
    values["variants"] = with_seeds(arms, seeds, rates)
    config = TrainConfig.model_validate(values)
    if any(variant.has_threshold for variant in config.variants):
        l0 = form.ks[-1] if section in ("rates", *TUNED) else None  # JumpReLU has no k of its own
        config = TrainConfig.model_validate({**values, "calibration": {"l0": l0}})
    return config, arms


def measure_section(
    section: str,
    form: Form,
    rates: Mapping[str, float],
    zipf: Mapping[str, float],
    cache: ActivationCache,
    model: Callable[[], Any],
    runs: Path,
    only_seed: int | None = None,
    wanted: Container[str] | None = None,
) -> dict[str, Any] | None:
    """Train (or continue) the section in ``runs`` and evaluate it, seed by seed.

    With ``only_seed`` this is done for that seed only, and there is no result. With ``wanted`` only these
    arms are trained.
    """
    rates = rates if section in TUNED else {}
    config, arms = training_of(section, form, rates, zipf, wanted)
    saes, failed, log = {}, {}, []
    for seed in sorted({variant.seed for variant in config.variants}):
        if only_seed not in (None, seed):
            continue
        variants = tuple(variant for variant in config.variants if variant.seed == seed)
        result = run(config.model_copy(update={"variants": variants}), cache, runs / f"seed{seed}")
        saes |= result.saes
        failed |= result.failed
        log += map(json.loads, (result.run_dir / "metrics.jsonl").read_text().splitlines())
    found = by_batch = None
    if section not in FROM_LOG:
        label = "" if only_seed is None else f"-seed{only_seed}"
        language_model = model if section in WITH_MODEL else lambda: None
        found = _evaluate(saes, "threshold", label, section, form, cache, language_model, runs)
    if section in BY_BATCH:
        having = {name: folder for name, folder in saes.items() if load_sae(folder).threshold is not None}
        by_batch = _evaluate(having, "batch", label, section, form, cache, lambda: None, runs)
    if only_seed is not None:
        return None
    manifest = cache.manifest
    return {
        "section": section,
        "settings": config.model_dump(mode="json", exclude={"variants"}),
        "rates": dict(rates),
        "zipf": dict(zipf),
        "cache": {
            "model": manifest.identity.get("model", {}).get("name"),
            "tokens": manifest.counts.get("tokens"),
            "train_rows": len(cache),
            "measured_rows": found and found.cache.rows,
            "width": cache.d_model(form.hook),
        },
        "ce_tokens": form.tuned_ce_tokens if section in TUNED else form.ce_tokens,
        "software": software_versions(("saecache", "torch")),
        "arms": {
            name: {
                "variant": arm,
                "seeds": [int(sae.rpartition("_seed")[2]) for sae in _names(name, saes)],
                "figures": _figures(name, found, by_batch, log, saes) if found else _of_log(name, log),
                "curves": _curves(name, found, log) if found else {},
            }
            for name, arm in arms.items()
            if _names(name, saes)
        },
        "failed": failed,
    }


def _evaluate(
    saes: Mapping[str, Path],
    rule: Literal["threshold", "batch"],
    label: str,
    section: str,
    form: Form,
    cache: ActivationCache,
    model: Callable[[], Any],
    runs: Path,
) -> Results:
    """Measure SAEs, but for those that a file in ``runs`` has; the others go to ``<rule><label>.json``."""
    parts = [read_results(file) for file in sorted(runs.glob(f"{rule}*.json"))]
    done = {sae.name for part in parts for sae in part.saes}
    if rest := [folder for name, folder in saes.items() if name not in done]:
        parts.append(
            evaluate(
                rest,
                cache,
                model=model(),
                out=runs / f"{rule}{label}.json",
                rule=rule,
                num_latents=0,
                all_latents=False,
                overlap_latents=1,
                match_latents=0,
                ce_tokens=form.tuned_ce_tokens if section in TUNED else form.ce_tokens,
                # also for kinds without a threshold: all are measured on the same rows
                max_rows=min(form.max_rows, rows_for_calibration(cache, 1).start),
                show_progress=False,
            )
        )
    every = [sae for part in parts for sae in part.saes if sae.name in saes]
    return parts[0].model_copy(update={"saes": every})


def fitted_zipf(section: Mapping[str, Any]) -> dict[str, float]:
    """Zipf's law as fitted to the densities of BatchTopK at the first k, the mean over the seeds.

    Footnote 6 of Mutual and Feature Choice: alpha and beta come from a trained SAE of the same size.
    """
    name = next(name for name in section["arms"] if name.startswith("batch_topk"))
    figures = section["arms"][name]["figures"]
    return {key: round(mean(figures[f"zipf_{key}"]), 4) for key in ("alpha", "beta")}


def _names(arm: str, saes: Iterable[str]) -> list[str]:
    return sorted(name for name in saes if name.rpartition("_seed")[0] == arm)


def _saes(arm: str, results: Results) -> list[SaeResult]:
    return sorted((s for s in results.saes if s.name.rpartition("_seed")[0] == arm), key=lambda s: s.name)


def _figures(
    arm: str,
    found: Results,
    by_batch: Results | None,
    log: list[dict[str, Any]],
    folders: Mapping[str, Path],
) -> dict[str, list[float]]:
    """Figure -> its value for each seed; a figure that is not defined for every seed is left out."""
    figures: dict[str, list[float | None]] = defaultdict(list)
    for sae in _saes(arm, found):
        last = [line for line in log if line["variant"] == sae.name][-1]
        costs, law = sae.language_model, sae.zipf
        for figure, value in {
            "fvu": sae.normalized.fvu,
            "mse": sae.normalized.mse,
            "l0": sae.codes.l0,
            "ce_recovered": costs and costs.ce_recovered,
            "kl": costs and costs.kl_sae,
            "dead": last["dead"],
            "silent": sae.codes.dead,
            "dying": sae.codes.dying,
            "over_10": sae.codes.dense_share,
            "zipf_alpha": law and law.linear.alpha,
            "zipf_beta": law and law.linear.beta,
            "zipf_r2_log": law and law.log.r2,
            "zipf_r2": law and law.linear.r2,
            "l0_min": sae.codes.l0_min,
            "l0_max": sae.codes.l0_max,
            "rows_per_second": median(line["rows_per_second"] for line in log if line["variant"] == sae.name),
            **{f"fvu_{step.kept}_kept": step.fvu for step in sae.progressive},
            "nearest_cosine": sae.collapse and sae.collapse.nearest_cosine,
        }.items():
            figures[figure].append(value)
    for sae in _saes(arm, by_batch) if by_batch else ():
        figures["fvu_batch"].append(sae.normalized.fvu)
        figures["mse_batch"].append(sae.normalized.mse)
        figures["l0_batch"].append(sae.codes.l0)
    names = _names(arm, folders)
    for one, other in zip(names, [*names[1:], names[0]], strict=True) if len(names) > 2 else ():
        pair = [(name, load_sae(folders[name])) for name in (one, other)]
        overlap = measure_overlap(*pair, num_sampled=SAMPLED_LATENTS, match_latents=0, seed=0)
        figures["mmcs"].append((overlap.mmcs_a_in_b + overlap.mmcs_b_in_a) / 2)
    return {
        figure: [float(f"{value:.6g}") for value in values if value is not None]
        for figure, values in figures.items()
        if None not in values and len(values) == len(names)
    }


def _of_log(arm: str, log: list[dict[str, Any]]) -> dict[str, list[float]]:
    """FVU, L0 and dead latents at the end of training, for each seed."""
    last = {line["variant"]: line for line in log}
    return {
        figure: [float(last[name][figure]) for name in _names(arm, last)] for figure in ("fvu", "l0", "dead")
    }


def _curves(arm: str, found: Results, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Alive latents over training for each seed; the other curves are of the first seed."""
    alive: dict[int, list[float]] = defaultdict(list)
    for sae in _saes(arm, found):
        for line in log:
            if line["variant"] == sae.name:
                alive[line["step"]].append(line["alive"])
    first = _saes(arm, found)[0]
    points = list(zip(first.density.rank, first.density.density, strict=True))
    some = points[:: -max(1, len(points) // CURVE_POINTS)][::-1]
    return {
        "alive": {str(step): values for step, values in alive.items()},
        "density": {
            "rank": [rank for rank, _ in some],
            "density": [float(f"{value:.3g}") for _, value in some],
        },
        "features_per_token": first.features_per_token.model_dump(),
        "progressive": [[step.kept, step.l0, step.fvu] for step in first.progressive if step.fvu is not None],
    }
