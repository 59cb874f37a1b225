"""From results to what the report's page shows: the data of its script, the rows of its table, the facts of
its cache.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .results import CacheSummary, Results, SaeResult
from .training_log import Curves


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An SAE in the report, under a name that is unique there."""

    name: str
    result: SaeResult
    training: Curves | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of results. ``first`` is the order of the first click."""

    label: str
    help: str
    css: str = ""
    first: str = "ascending"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """``value`` is what the table is sorted by, empty when it was not measured."""

    text: str
    value: str
    error: str = ""


_COLUMNS = (
    Column(label="SAE", help="name of the variant", css="text"),
    Column(label="kind", help="kind of SAE", css="text"),
    Column(label="hook", help="where in the model", css="text"),
    Column(label="latents", help="number of latents"),
    Column(label="L0", help="mean number of active latents per token"),
    Column(label="FVU", help="fraction of variance unexplained, normalized rows"),
    Column(label="FVU raw", help="fraction of variance unexplained, raw activations"),
    Column(label="MSE", help="mean squared error per coordinate, normalized rows"),
    Column(label="cosine", help="mean cosine between row and reconstruction", first="descending"),
    Column(
        label="CE recovered",
        help="share of the cross-entropy lost by zero ablation that is recovered",
        first="descending",
    ),
    Column(label="KL score", help="1 - KL with the SAE / KL with zero ablation", first="descending"),
    Column(label="alive", help="share of latents that fire on the measured rows", first="descending"),
    Column(label="dead", help="latents that never fire on the measured rows"),
    Column(label="> 10 %", help="share of latents that fire on more than 10 % of rows"),
)


def table(entries: Sequence[Entry]) -> tuple[list[Column], list[list[Cell]]]:
    """Columns and rows; the hook is a column only where there are several."""
    rows = [_table_row(entry) for entry in entries]
    several_hooks = len({entry.result.hook for entry in entries}) > 1
    shown = [i for i, column in enumerate(_COLUMNS) if several_hooks or column.label != "hook"]
    return [_COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _table_row(entry: Entry) -> list[Cell]:
    result = entry.result
    codes, normalized, cost = result.codes, result.normalized, result.language_model
    error = None if cost is None else cost.ce_recovered_standard_error
    return [
        Cell(text=entry.name, value=entry.name),
        Cell(text=result.kind, value=result.kind),
        Cell(text=result.hook, value=result.hook),
        _cell(result.num_latents, ",d"),
        _cell(codes.l0, ".2f"),
        _cell(normalized.fvu, ".4f"),
        _cell(result.raw.fvu, ".4f"),
        _cell(normalized.mse, ".3g"),
        _cell(normalized.cosine, ".4f"),
        _cell(None if cost is None else cost.ce_recovered, ".4f", "" if error is None else f"{error:.1g}"),
        _cell(None if cost is None else cost.kl_score, ".4f"),
        Cell(text=f"{100 * codes.alive_share:.1f} %", value=str(codes.alive_share)),
        _cell(codes.dead, ",d"),
        Cell(text=f"{100 * codes.dense_share:.2f} %", value=str(codes.dense_share)),
    ]


def _cell(value: float | None, form: str, error: str = "") -> Cell:
    if value is None:
        return Cell(text="–", value="")
    return Cell(text=format(value, form), value=repr(value), error=error)


def sae_data(entry: Entry) -> dict[str, Any]:
    """What the page's script draws of an SAE."""
    result = entry.result
    cost = result.language_model
    return {
        "name": entry.name,
        "kind": result.kind,
        "hook": result.hook,
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
    }


def script_safe_json(value: Any) -> str:
    """JSON that can stand inside a script element: no ``<``, ``>`` or ``&``, and no line separators of
    JavaScript.

    What is written as an escape is the same string once parsed; but ``</script>`` and ``<!--`` cannot occur.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def cache_block(cache: CacheSummary, results: Results) -> dict[str, Any]:
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
    """Name and revision, or what is known instead."""
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
