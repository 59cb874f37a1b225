"""What the report's page shows: its table, the facts of its cache, the data of its script, its curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Any

from ..common.errors import UsageError
from ..common.hook_names import block_of
from ..store.untrusted_files import read_object_lines
from .results import CacheSummary, Results, SaeResult
from .table import mean_accuracy

LOG_NAME = "metrics.jsonl"
CURVES = ("fvu", "l0", "dead")
MAX_POINTS = 300
LARGEST = float_info.max

Curves = dict[str, list[float | None]]


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
    """A cell of the table of results, sorted by ``value``, which is empty if nothing was measured."""

    text: str
    value: str
    error: str = ""


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
)


_OPTIONAL = {"top-1", "dying", "Zipf R²", "nearest", "probe k=1", "k=5", "absorbed"}


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
        _cell(codes.l0, ".2f"),
        _cell(normalized.fvu, ".4f"),
        _cell(result.raw.fvu, ".4f"),
        _cell(normalized.mse, ".3g"),
        _cell(normalized.cosine, ".4f"),
        _cell(None if cost is None else cost.ce_recovered, ".4f", "" if error is None else f"{error:.1g}"),
        _cell(None if cost is None else cost.kl_score, ".4f"),
        _cell(None if cost is None else cost.top1_sae, ".4f"),
        TableCell(text=f"{100 * codes.alive_share:.1f} %", value=str(codes.alive_share)),
        _cell(codes.dead, ",d"),
        _cell(codes.dying, ",d"),
        TableCell(text=f"{100 * codes.dense_share:.2f} %", value=str(codes.dense_share)),
        _cell(None if result.zipf is None else result.zipf.log.r2, ".4f"),
        _cell(None if result.collapse is None else result.collapse.nearest_cosine, ".3f"),
        _cell(mean_accuracy(result, "1"), ".4f"),
        _cell(mean_accuracy(result, "5"), ".4f"),
        _cell(None if result.absorption is None else result.absorption.absorption_fraction, ".4f"),
    ]


def _cell(value: float | None, form: str, error: str = "") -> TableCell:
    if value is None:
        return TableCell(text="–", value="")
    return TableCell(text=format(value, form), value=repr(value), error=error)


def make_script_data(entry: ReportEntry) -> dict[str, Any]:
    """The data of one SAE for the page's script."""
    result = entry.result
    cost = result.language_model
    return {
        "name": entry.name,
        "kind": result.kind,
        "hook": result.place,
        "num_latents": result.num_latents,
        "l0": result.codes.l0,
        "fvu": result.normalized.fvu,
        "ce_recovered": None if cost is None else cost.ce_recovered,
        "alive": result.codes.alive,
        "training": entry.training,
        "density": {
            "rank": result.density.rank,
            "density": [float(f"{d:.4g}") for d in result.density.density],
            "histogram": result.density.log10_histogram.model_dump(),
        },
        "features_per_token": result.features_per_token.model_dump(),
        "latents": [latent.model_dump() for latent in result.latents],
        "layers": _layers(result),
        "across_layers": entry.name.removeprefix(f"{result.hook}-"),
        "decoder_shares": {one.hook: one.decoder_shares.model_dump() for one in result.hooks},
    }


def _layers(result: SaeResult) -> list[tuple[int, float | None, float | None]]:
    """(block, FVU, CE recovered) at each block that an SAE reconstructs; none for hooks without a number."""
    found = [(one.hook, one.normalized.fvu, one.language_model) for one in result.hooks]
    if not found:
        found = [(result.target or result.hook, result.normalized.fvu, result.language_model)]
    return [
        (int(block), fvu, None if cost is None else cost.ce_recovered)
        for hook, fvu, cost in found
        if (block := block_of(hook)) is not None
    ]


def covers_layers(entries: Sequence[ReportEntry]) -> bool:
    """Whether the SAEs reconstruct more than one block, so that layers can be compared."""
    return len({layer[0] for entry in entries for layer in _layers(entry.result)}) > 1


def to_script_json(value: Any) -> str:
    """JSON that can stand inside a script element.

    ``<``, ``>``, ``&`` and JavaScript's line separators are written as escapes. Parsed, the strings are the
    same; but ``</script>`` and ``<!--`` cannot occur.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


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


def read_training_curves(path: Path) -> dict[str, Curves]:
    """Read ``rows`` and the :data:`CURVES` over them by variant, at most about ``MAX_POINTS`` points each.

    If a step occurs twice, because training was resumed, the later line counts. A last line that a killed
    process left unfinished is ignored. A value that a line does not hold is None.

    Raises:
        UsageError: a line in the middle that is not JSON with a step, rows and a variant.
    """
    by_step: dict[str, dict[int, dict[str, Any]]] = {}
    for number, _, record in read_object_lines(path, allow_nan=True):
        if record is None:
            continue
        match record:
            case {"variant": str(variant), "step": int(step)}:
                kept = {key: record.get(key) for key in ("rows", *CURVES)}
                by_step.setdefault(variant, {})[step] = kept
            case _:
                raise UsageError(f"{path}, line {number}: expected a JSON object with step and variant")
    return {variant: _thinned(steps) for variant, steps in by_step.items()}


def _thinned(steps: dict[int, dict[str, Any]]) -> Curves:
    records = [steps[step] for step in sorted(steps)]
    every = -(-len(records) // MAX_POINTS)
    kept = records[::every]
    if records[-1] is not kept[-1]:
        kept.append(records[-1])
    return {key: [_rounded(record.get(key)) for record in kept] for key in ("rows", *CURVES)}


def _rounded(value: Any) -> float | None:
    """A finite number with five significant digits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
