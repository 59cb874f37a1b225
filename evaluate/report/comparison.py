"""The parts of the page that need no script: table of results, overlap of SAEs, facts of the cache."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results import CacheSummary, MeanScore, Results, SaeResult
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


_COLUMNS = (
    TableColumn(label="SAE", help="name of the variant", css="text"),
    TableColumn(label="kind", help="kind of SAE", css="text"),
    TableColumn(label="hook", help="where in the model", css="text"),
    TableColumn(label="latents", help="number of latents"),
    TableColumn(label="L0", help="mean number of active latents per token"),
    TableColumn(label="FVU", help="fraction of variance unexplained, normalized rows"),
    TableColumn(label="FVU raw", help="fraction of variance unexplained, raw activations"),
    TableColumn(label="MSE", help="mean squared error per coordinate, normalized rows"),
    TableColumn(label="cosine", help="mean cosine between row and reconstruction", first="descending"),
    TableColumn(
        label="CE recovered",
        help="share of the cross-entropy lost by zero ablation that is recovered",
        first="descending",
    ),
    TableColumn(label="KL score", help="1 - KL with the SAE / KL with zero ablation", first="descending"),
    TableColumn(
        label="top-1",
        help="share of tokens with the clean model's most likely next token",
        first="descending",
    ),
    TableColumn(label="alive", help="share of latents that fire on the measured rows", first="descending"),
    TableColumn(label="dead", help="latents that never fire on the measured rows"),
    TableColumn(label="dying", help="alive latents that are far below Zipf's law at the end of the ranks"),
    TableColumn(label="> 10 %", help="share of latents that fire on more than 10 % of rows"),
    TableColumn(label="Zipf R²", help="of the fit to log densities", first="descending"),
    TableColumn(label="nearest", help="mean cosine of a decoder direction with its nearest other"),
    TableColumn(
        label="probe k=1", help="accuracy of probes of labelled texts that see one latent", first="descending"
    ),
    TableColumn(
        label="k=5", help="accuracy of probes of labelled texts that see five latents", first="descending"
    ),
    TableColumn(label="absorbed", help="share of first letters that other latents have absorbed"),
    TableColumn(
        label="detection",
        help="how well a judge finds active windows by the explanations; 0.5 is chance",
        first="descending",
    ),
    TableColumn(
        label="fuzzing",
        help="how well a judge tells right highlights by the explanations; 0.5 is chance",
        first="descending",
    ),
)


_OPTIONAL = {
    *("top-1", "dying", "Zipf R²", "nearest", "probe k=1", "k=5", "absorbed", "detection", "fuzzing"),
}


def make_table(entries: Sequence[ReportEntry]) -> tuple[list[TableColumn], list[list[TableCell]]]:
    """Columns and rows of the table of results; the hook is a column only if there are several, and a figure
    that is not always measured only if an SAE has it.
    """
    rows = [_table_row(entry) for entry in entries]
    several_hooks = len({entry.result.place for entry in entries}) > 1
    absent = {
        column.label
        for i, column in enumerate(_COLUMNS)
        if column.label in _OPTIONAL and not any(row[i].value for row in rows)
    }
    if not several_hooks:
        absent.add("hook")
    shown = [i for i, column in enumerate(_COLUMNS) if column.label not in absent]
    return [_COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _table_row(entry: ReportEntry) -> list[TableCell]:
    result = entry.result
    codes, normalized, cost = result.codes, result.normalized, result.language_model
    error = None if cost is None else cost.ce_recovered_standard_error
    return [
        TableCell(text=entry.name, value=entry.name),
        TableCell(text=result.kind, value=result.kind),
        TableCell(text=result.place, value=result.place),
        _cell(result.num_latents, ",d"),
        _cell(codes.l0, ".2f", interval=codes.intervals.get("l0")),
        _cell(normalized.fvu, ".4f", interval=normalized.intervals.get("fvu")),
        _cell(result.raw.fvu, ".4f", interval=result.raw.intervals.get("fvu")),
        _cell(normalized.mse, ".3g", interval=normalized.intervals.get("mse")),
        _cell(normalized.cosine, ".4f", interval=normalized.intervals.get("cosine")),
        _cell(
            None if cost is None else cost.ce_recovered,
            ".4f",
            "" if error is None else f"{error:.1g}",
            None if cost is None else cost.intervals.get("ce_recovered"),
        ),
        _cell(
            None if cost is None else cost.kl_score,
            ".4f",
            interval=None if cost is None else cost.intervals.get("kl_score"),
        ),
        _cell(
            None if cost is None else cost.top1_sae,
            ".4f",
            interval=None if cost is None else cost.intervals.get("top1_sae"),
        ),
        TableCell(text=f"{100 * codes.alive_share:.1f} %", value=str(codes.alive_share)),
        _cell(codes.dead, ",d"),
        _cell(codes.dying, ",d"),
        TableCell(text=f"{100 * codes.dense_share:.2f} %", value=str(codes.dense_share)),
        _cell(None if result.zipf is None else result.zipf.log.r2, ".4f"),
        _cell(None if result.collapse is None else result.collapse.nearest_cosine, ".3f"),
        _cell(result.probe_accuracy("1"), ".4f"),
        _cell(result.probe_accuracy("5"), ".4f"),
        _cell(None if result.absorption is None else result.absorption.absorption_fraction, ".4f"),
        _judged(None if result.interpretation is None else result.interpretation.detection),
        _judged(None if result.interpretation is None else result.interpretation.fuzzing),
    ]


def _judged(score: MeanScore | None) -> TableCell:
    return _cell(None, "") if score is None else _cell(score.mean, ".3f", interval=score.interval)


def _cell(
    value: float | None, form: str, error: str = "", interval: tuple[float, float] | None = None
) -> TableCell:
    if value is None:
        return TableCell(text="–", value="")
    words = "" if interval is None else f"95 %: {interval[0]:.4g} to {interval[1]:.4g}"
    return TableCell(text=format(value, form), value=repr(value), error=error, interval=words)


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
