"""The parts of the page that need no script: table of results, overlap of SAEs, facts of the cache."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results import CacheSummary, Results, SaeResult
from ..table_figures import TableFigure, choose_figures
from .training import Curves


@dataclass(frozen=True, kw_only=True)
class ReportEntry:
    """An SAE in the report, under a name that is unique there."""

    name: str
    result: SaeResult
    training: Curves | None


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """A column of the table of results. ``first`` is how the first click on it sorts."""

    label: str
    help: str
    css: str = ""
    first: str = "ascending"


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A cell of the table of results, sorted by ``value``, which is empty if nothing was measured.

    ``error`` is a standard error, and ``interval`` a 95 % interval, in words.
    """

    text: str
    value: str
    error: str = ""
    interval: str = ""


_NAMES = (
    TableColumn(label="SAE", help="name of the variant", css="text"),
    TableColumn(label="kind", help="kind of SAE", css="text"),
    TableColumn(label="hook", help="where in the model", css="text"),
)


def make_table(entries: Sequence[ReportEntry]) -> tuple[list[TableColumn], list[list[TableCell]]]:
    """Columns and rows of the table of results; the hook is a column only if there are several, and a figure
    that is not always measured only if an SAE has it.
    """
    figures = choose_figures([entry.result for entry in entries])
    num_names = 3 if len({entry.result.place for entry in entries}) > 1 else 2
    columns = [
        TableColumn(
            label=figure.label,
            help=figure.help,
            first="descending" if figure.higher_is_better else "ascending",
        )
        for figure in figures
    ]
    rows = []
    for entry in entries:
        names = (entry.name, entry.result.kind, entry.result.place)[:num_names]
        cells = [_cell(figure, entry.result) for figure in figures]
        rows.append([*(TableCell(text=name, value=name) for name in names), *cells])
    return [*_NAMES[:num_names], *columns], rows


def _cell(figure: TableFigure, result: SaeResult) -> TableCell:
    found = figure.read(result)
    return TableCell(
        text=figure.show(found.value),
        value="" if found.value is None else repr(found.value),
        error="" if found.error is None else f"{found.error:.1g}",
        interval=found.between and f"95 %: {found.between}",
    )


@dataclass(frozen=True, kw_only=True)
class OverlapMatrix:
    """How much SAEs find of one another's directions: a row of cells for each of ``names``.

    Cell (row, column): MMCS of the row's SAE in the column's; empty where the two were not compared.
    ``matched`` is the share of latents that are matched one to one, for people.
    """

    names: list[str]
    values: list[list[float | None]]
    matched: list[list[str]]


def make_overlap(
    measured: Sequence[tuple[Path, Results]], entries: Sequence[ReportEntry]
) -> OverlapMatrix | None:
    """The matrix of overlaps, which are those within each results file; None if there are none."""
    size = len(entries)
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    matched = [[""] * size for _ in range(size)]
    start, found = 0, False
    for _, results in measured:
        number = {sae.name: start + i for i, sae in enumerate(results.saes)}
        for pair in results.overlap:
            if pair.a not in number or pair.b not in number:
                continue
            a, b = number[pair.a], number[pair.b]
            values[a][b], values[b][a] = pair.mmcs_a_in_b, pair.mmcs_b_in_a
            if pair.matching is not None:
                matched[a][b] = matched[b][a] = f"{100 * pair.matching.share:.1f} % matched one to one"
            found = True
        start += len(results.saes)
    if not found:
        return None
    return OverlapMatrix(names=[entry.name for entry in entries], values=values, matched=matched)


def describe_cache_of(cache: CacheSummary, results: Results) -> dict[str, Any]:
    """Tiles, facts and the identity of a cache."""
    scored = next((s.language_model for s in results.saes if s.language_model is not None), None)
    tiles = [
        (f"{cache.train_rows:,}", "training rows"),
        (
            f"{cache.rows:,}",
            "held-out rows measured" if cache.split == "heldout" else "training rows measured",
        ),
        (str(len(results.saes)), "SAEs"),
        (", ".join(str(width) for width in dict.fromkeys(cache.hooks.values())), "row width"),
        (f"{cache.context:,}", "tokens of context"),
    ]
    facts = [
        ("model", model_name(cache)),
        ("text", _text_name(cache.identity.get("text"))),
        ("hooks", ", ".join(cache.hooks)),
        ("stored as", cache.normalization),
        ("fingerprint", cache.fingerprint),
        ("path", cache.path),
    ]
    if scored is not None:
        tiles.append((f"{scored.ce_clean:.3f}", "clean loss, nats per token"))
        facts.append(
            (
                "scored",
                f"{scored.num_tokens:,} tokens in {scored.num_sequences:,} sequences; cross-entropy "
                f"clean {scored.ce_clean:.4f}, zero-ablated {scored.ce_zero:.4f}, mean-ablated "
                f"{scored.ce_mean:.4f} nats",
            )
        )
    identity = json.dumps(cache.identity, indent=2, ensure_ascii=False, sort_keys=True)
    return {"tiles": tiles, "facts": facts, "identity": identity}


def model_name(cache: CacheSummary) -> str:
    """Name and revision of the cache's model, or what is known instead."""
    model = cache.identity.get("model")
    if not isinstance(model, Mapping):
        return "not from a language model" if model is None else str(model)
    revision = model.get("revision")
    return f"{model.get('name', '?')}{f' at {revision}' if revision else ''}"


def _text_name(text: Any) -> str:
    """The plain settings of a text source, in one line."""
    if not isinstance(text, Mapping):
        return "–" if text is None else str(text)
    plain = {k: v for k, v in text.items() if isinstance(v, str | int | float | bool) and v != ""}
    return ", ".join(f"{key} {value}" for key, value in plain.items()) or "–"
