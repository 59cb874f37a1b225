"""Formats results as a table for the terminal."""

from ..common.tables import format_columns
from .results import Results, SaeResult

_COLUMNS = (
    "SAE",
    "kind",
    "latents",
    "L0",
    "FVU",
    "MSE",
    "cosine",
    "alive",
    "dead",
    ">10 %",
    "CE rec.",
    "KL score",
)


def format_table(results: Results) -> str:
    """One line per SAE, and a last line that says on which rows and tokens they were measured."""
    rows = [_COLUMNS, *(_row(sae) for sae in results.saes)]
    cache = results.cache
    measured = [f"{cache.rows:,} {'held-out' if cache.split == 'heldout' else 'TRAINING'} rows"]
    scored = results.saes[0].language_model
    if scored is not None:
        measured.append(
            f"{scored.num_tokens:,} tokens for CE and KL: clean {scored.ce_clean:.4f}, "
            f"zero-ablated {scored.ce_zero:.4f} nats"
        )
    return f"{format_columns(rows, num_text=2)}\nmeasured on {'; '.join(measured)}"


def _row(sae: SaeResult) -> tuple[str, ...]:
    codes, normalized, cost = sae.codes, sae.normalized, sae.language_model
    return (
        sae.name,
        sae.kind,
        f"{sae.num_latents:,}",
        f"{codes.l0:.1f}",
        _number(normalized.fvu),
        f"{normalized.mse:.3g}",
        f"{normalized.cosine:.4f}",
        f"{100 * codes.alive_share:.1f} %",
        f"{codes.dead:,}",
        f"{100 * codes.dense_share:.2f} %",
        _number(None if cost is None else cost.ce_recovered),
        _number(None if cost is None else cost.kl_score),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
