"""Draws ``results.json`` and what is beside it as one HTML page.

In a report everything is in the file, and no network is needed. The page that ``saecache browse`` serves is
the same, and asks for parts of the latents as one scrolls.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ...common.outputs import check_file_output
from ...store.durable import write_bytes
from ..known_features import make_recovery_table
from .comparison import describe_cache_of, make_overlap, make_table, model_name
from .data import ReportData, gather
from .explanations import describe_explanations, list_unique
from .figures import make_figures
from .pareto import family_of

MOST_LATENTS = 16_384  # of an SAE in one file
_SECTIONS = {
    "cache": "Cache",
    "results": "Results",
    "pareto": "Sparsity and fidelity",
    "layers": "Layers",
    "training": "Training",
    "density": "Density",
    "features": "Features per token",
    "calibration": "Calibration",
    "known": "Known features",
    "overlap": "Overlap",
    "unique": "Unique latents",
    "latents": "Latents",
    "definitions": "Definitions",
}
_ALWAYS = ("cache", "results", "pareto", "training", "density", "features", "latents", "definitions")
_SCRIPTS = ("charts.js", "report.js", "latents.js")


def write_report(
    run_dirs: Sequence[Path | str],
    out_html: Path | str,
    *,
    results: Path | str | None = None,
    most_latents: int = MOST_LATENTS,
) -> Path:
    """Write one HTML file of what was measured.

    Args:
        run_dirs: run folders; each holds ``results.json`` unless ``results`` is given, and ``metrics.jsonl``.
        out_html: the file to write, as a whole or not at all.
        results: one results file instead of those in the run folders.
        most_latents: of an SAE with more latents so many are in the page, spread over the ranks by density.

    Raises:
        UsageError: no results there, or damaged ones, or not of this version; a file that cannot be written.
    """
    out_html = Path(out_html)
    check_file_output(out_html)
    data = gather(
        [Path(folder) for folder in run_dirs], None if results is None else Path(results), most_latents
    )
    write_bytes(out_html, render(data, served=False).encode("utf-8"))
    return out_html


def render(data: ReportData, *, served: bool) -> str:
    """The page as text. ``served``: its script asks for parts of the latents, which are not in the page."""
    entries, measured = data.entries, data.measured
    caches = {results.cache.fingerprint: (results.cache, results) for _, results in measured}
    first = measured[0][1]
    warnings = [warning for _, results in measured for warning in results.warnings] + data.notes
    if len(caches) > 1:
        warnings.append(
            f"These SAEs were trained from {len(caches)} different caches: compare their figures with care."
        )
    models = dict.fromkeys(model_name(results.cache) for _, results in measured)
    hooks = dict.fromkeys(entry.result.place for entry in entries)
    count = f"{len(entries)} SAE{'s' if len(entries) != 1 else ''}"
    columns, rows = make_table(entries)
    figures, overlap = make_figures(entries), make_overlap(data.measured, entries)
    unique = list_unique(data.measured, [entry.name for entry in entries])
    present = {*_ALWAYS, *(figure.section for figure in figures)}
    known = make_recovery_table([(entry.name, entry.result.recovery) for entry in entries])
    optional = {"known": known, "overlap": overlap, "unique": unique}
    present |= {name for name, there in optional.items() if there}
    script = "".join(_resource(name) for name in _SCRIPTS)
    template = _environment().from_string(_resource("report.html.j2"))
    return template.render(
        title=f"{count} on {', '.join(hooks)}",
        subtitle=f"{', '.join(models)} · measured {first.created[:10]}",
        sections=[(name, label) for name, label in _SECTIONS.items() if name in present],
        warnings=list(dict.fromkeys(warnings)),
        caches=[describe_cache_of(cache, results) for cache, results in caches.values()],
        columns=columns,
        rows=[
            {"index": index, "cells": cells, "where": entry.result.sae_dir}
            for index, (entry, cells) in enumerate(zip(entries, rows, strict=True))
        ],
        known=known,
        overlap=overlap,
        unique=unique,
        definitions=list((first.definitions | _definitions(data)).items()),
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
        served=served,
        style=_resource("report.css"),
        script=script,
        script_hash=_source_hash(script),
        data=to_script_json(
            {
                "saes": [_describe(data, number) for number in range(len(entries))],
                "figures": [figure.as_json() for figure in figures],
            }
        ),
        parts=() if served else _embedded(data),
    )


def _describe(data: ReportData, number: int) -> dict[str, Any]:
    """What the script knows of an SAE before it has read a part of its latents."""
    entry, parts = data.entries[number], data.latents[number]
    return {
        "name": entry.name,
        "family": json.dumps(family_of(entry.result)),
        "alive": entry.result.codes.alive,
        "explained": describe_explanations(entry.result),
        "latents": None if parts is None else parts.describe() | {"text": data.text_of[number]},
    }


def _definitions(data: ReportData) -> dict[str, str]:
    """What the browser of latents shows, in words; of the first SAE that has a folder of latents."""
    for parts in data.latents:
        if parts is not None and parts.latents.info.definitions:
            info = parts.latents.info
            return {f"latents: {key}": words for key, words in info.definitions.items()} | {
                "latents: logits": info.logits
            }
    return {}


def _embedded(data: ReportData) -> Iterator[tuple[str, str]]:
    """The name of each part of the latents, and its bytes, deflated and in base64."""
    for number, parts in enumerate(data.latents):
        for name in () if parts is None else parts.names():
            content = (
                parts.read(name) if parts and (name != "text" or data.text_of[number] == number) else None
            )
            if content is not None:
                packed = base64.b64encode(zlib.compress(content, 6)).decode("ascii")
                yield f"{number}/{name}", packed


def to_script_json(value: Any) -> str:
    """JSON that can stand inside a script element.

    ``<``, ``>``, ``&`` and JavaScript's line separators are written as escapes. Parsed, the strings are the
    same; but ``</script>`` and ``<!--`` cannot occur.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _resource(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text("utf-8")


def _source_hash(script: str) -> str:
    """The hash in the page's content security policy: only this script runs, whatever the data say."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}"
