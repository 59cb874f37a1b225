"""Runs an evaluation: measures SAEs on the cache they were trained from and writes ``results.json``."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from os.path import relpath
from pathlib import Path
from typing import Any

import torch

from ..common.devices import choose_device
from ..common.outputs import check_file_output
from ..common.validation import validate
from ..common.versions import software_versions
from ..store import ActivationCache, open_cache
from ..train import SAE
from .config import EvaluateConfig
from .contexts import DecodeToken, find_places
from .definitions import DEFINITIONS
from .language_model import Spliced, SplicedModel, measure_language_model
from .measure import MeasuredRows, choose_rows, measure_sae
from .results import CacheSummary, LanguageModelMetrics, Results, SaeResult, write_results
from .sequences import choose_sequences
from .targets import Target, choose_output, find_targets_of

_SOFTWARE = ("saecache", "torch", "numpy", "transformers")


def run(
    targets: Sequence[Path | str],
    cache: ActivationCache | Path | str,
    config: EvaluateConfig | None = None,
    *,
    model: SplicedModel | None = None,
    decode_token: DecodeToken | None = None,
    out: Path | str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> Results:
    """Measure SAEs on held-out rows of the cache they were trained from, and write the results.

    If the cache has no held-out rows, the last tenth of its training rows is measured, and the results say
    so.

    Args:
        targets: SAE folders, or run folders (every SAE in them).
        cache: the cache the SAEs were trained from.
        config: the settings; the defaults when None.
        model: the language model of the cache; without it CE and KL are not measured.
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
    found = find_targets_of(folders, cache)
    rows, warnings = choose_rows(cache, config.max_rows)
    has_tokens = cache.manifest.tokens == "ids and documents"
    if not has_tokens:
        warnings.append("The cache holds no token ids: contexts, CE and KL were not measured.")
    if show_progress:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    places = None
    if has_tokens and config.num_latents:
        places = find_places(cache, rows.split, rows.first, rows.count)
    device = choose_device(config.device, float64=True)
    decode_token = decode_token or "⟨{}⟩".format
    measured = [
        measure_sae(
            target.load(device),
            target.name,
            cache,
            rows,
            places,
            config,
            decode_token,
            show_progress=show_progress,
        )
        for target in found
    ]
    costs: dict[str, LanguageModelMetrics] = {}
    if model is not None and has_tokens:
        costs = _language_model(model, cache, found, rows, config, device, show_progress)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_versions(_SOFTWARE),
        settings=config.model_dump(),
        cache=_summary(cache, rows),
        definitions=DEFINITIONS,
        warnings=warnings,
        saes=[
            _complete(result, target, costs, out.parent)
            for result, target in zip(measured, found, strict=True)
        ],
    )
    write_results(results, out)
    return results


def _language_model(
    model: SplicedModel,
    cache: ActivationCache,
    targets: Sequence[Target],
    rows: MeasuredRows,
    config: EvaluateConfig,
    device: torch.device,
    show_progress: bool,
) -> dict[str, LanguageModelMetrics]:
    sequences = choose_sequences(cache, rows.split, rows.count, config.ce_tokens, config.seed)
    spliced = [_spliced(target.name, target.load(device)) for target in targets]
    return measure_language_model(
        model,
        cache,
        spliced,
        sequences,
        split=rows.split,
        logit_bytes=config.logit_bytes,
        show_progress=show_progress,
    )


def _spliced(name: str, sae: SAE) -> Spliced:
    def reconstruct(raw_PD: torch.Tensor) -> torch.Tensor:
        reconstruction: torch.Tensor = sae(raw_PD.to(sae.W_dec.device), input="raw")
        return reconstruction

    return Spliced(name=name, hook=sae.cfg.hook, reconstruct=reconstruct)


def _complete(
    result: SaeResult, target: Target, costs: dict[str, LanguageModelMetrics], results_folder: Path
) -> SaeResult:
    where = {"sae_dir": _relative(target.sae_dir, results_folder), "language_model": costs.get(target.name)}
    return result.model_copy(update=where)


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
