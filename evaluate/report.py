"""Draws ``results.json`` and ``metrics.jsonl`` as one HTML file that needs no network."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ..common.outputs import check_file_output
from ..store.durable import write_bytes
from .report_data import (
    LOG_NAME,
    Curves,
    ReportEntry,
    covers_layers,
    describe_cache_of,
    make_script_data,
    make_table,
    model_name,
    read_training_curves,
    to_script_json,
)
from .results import RESULTS_NAME, Results, SaeResult, read_results

_SECTIONS = (
    ("cache", "Cache"),
    ("results", "Results"),
    ("pareto", "Sparsity and fidelity"),
    ("layers", "Layers"),
    ("training", "Training"),
    ("density", "Density"),
    ("features", "Features per token"),
    ("latents", "Latents"),
    ("definitions", "Definitions"),
)


def write_report(
    run_dirs: Sequence[Path | str], out_html: Path | str, *, results: Path | str | None = None
) -> Path:
    """Write one HTML file of what was measured.

    Args:
        run_dirs: run folders; each holds ``results.json`` unless ``results`` is given, and ``metrics.jsonl``.
        out_html: the file to write, as a whole or not at all.
        results: one results file instead of those in the run folders.

    Raises:
        UsageError: no results there, or not results of this version; a file that cannot be written.
    """
    folders, out_html = [Path(folder) for folder in run_dirs], Path(out_html)
    check_file_output(out_html)
    paths = [folder / RESULTS_NAME for folder in folders] if results is None else [Path(results)]
    measured = [(path, read_results(path)) for path in paths]
    html = render(measured, _entries(measured, folders))
    write_bytes(out_html, html.encode("utf-8"))
    return out_html


def _entries(measured: Sequence[tuple[Path, Results]], run_dirs: Sequence[Path]) -> list[ReportEntry]:
    names = Counter(sae.name for _, results in measured for sae in results.saes)
    logs: dict[Path, dict[str, Curves]] = {}
    entries = []
    for number, (path, results) in enumerate(measured, start=1):
        for sae in results.saes:
            run_name = path.resolve().parent.name or str(number)
            name = sae.name if names[sae.name] == 1 else f"{run_name}/{sae.name}"
            entries.append(
                ReportEntry(name=name, result=sae, training=_training(sae, path.parent, run_dirs, logs))
            )
    return entries


def _training(
    sae: SaeResult, results_folder: Path, run_dirs: Sequence[Path], logs: dict[Path, dict[str, Curves]]
) -> Curves | None:
    """The training curves of an SAE: from its own run or, if that has moved, from one of ``run_dirs``."""
    try:
        variant = (results_folder / sae.sae_dir).resolve().parent
    except (OSError, RuntimeError, ValueError):  # a path of others: too long, a loop of links, a NUL
        return None
    for run_dir in (variant.parent, *run_dirs):
        path = run_dir / LOG_NAME
        if path not in logs:
            try:
                logs[path] = read_training_curves(path)
            except FileNotFoundError:
                logs[path] = {}
        if variant.name in logs[path]:
            return logs[path][variant.name]
    return None


def render(measured: Sequence[tuple[Path, Results]], entries: Sequence[ReportEntry]) -> str:
    """The page as text."""
    caches = {results.cache.fingerprint: (results.cache, results) for _, results in measured}
    first = measured[0][1]
    warnings = [warning for _, results in measured for warning in results.warnings]
    if len(caches) > 1:
        warnings.append(
            f"These SAEs were trained from {len(caches)} different caches: compare their figures with care."
        )
    models = dict.fromkeys(model_name(results.cache) for _, results in measured)
    hooks = dict.fromkeys(entry.result.place for entry in entries)
    count = f"{len(entries)} SAE{'s' if len(entries) != 1 else ''}"
    columns, rows = make_table(entries)
    script = _resource("charts.js") + _resource("report.js")
    template = _environment().from_string(_resource("report.html.j2"))
    return template.render(
        title=f"{count} on {', '.join(hooks)}",
        subtitle=f"{', '.join(models)} · measured {first.created[:10]}",
        sections=[section for section in _SECTIONS if section[0] != "layers" or covers_layers(entries)],
        covers_layers=covers_layers(entries),
        warnings=list(dict.fromkeys(warnings)),
        caches=[describe_cache_of(cache, results) for cache, results in caches.values()],
        columns=columns,
        rows=[
            {"index": index, "cells": cells, "where": entry.result.sae_dir}
            for index, (entry, cells) in enumerate(zip(entries, rows, strict=True))
        ],
        definitions=list(first.definitions.items()),
        configurations=json.dumps(
            {entry.name: entry.result.config for entry in entries}, indent=2, ensure_ascii=False
        ),
        provenance=json.dumps(
            {"settings": first.settings, "software": first.software},
            indent=2,
            ensure_ascii=False,
        ),
        created=first.created,
        version=first.software.get("saecache", ""),
        style=_resource("report.css"),
        script=script,
        script_hash=_source_hash(script),
        data=to_script_json({"saes": [make_script_data(entry) for entry in entries]}),
    )


def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _resource(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text("utf-8")


def _source_hash(script: str) -> str:
    """The hash in the page's content security policy: only this script runs, whatever the data say."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}"
