"""Formats results as a table for the terminal."""

from ..common.tables import format_columns
from .results import Results
from .table_figures import choose_figures

_MOST_PAIRS = 10


def format_table(results: Results) -> str:
    """One line per SAE, and a last line that says on which rows and tokens they were measured."""
    figures = [figure for figure in choose_figures(results.saes) if figure.in_terminal]
    num_text = 3 if len({sae.place for sae in results.saes}) > 1 else 2
    rows = [(*("SAE", "kind", "hook")[:num_text], *(figure.short or figure.label for figure in figures))]
    for sae in results.saes:
        values = [figure.show(figure.read(sae).value, missing="-") for figure in figures]
        rows.append((*(sae.name, sae.kind, sae.place)[:num_text], *values))
    cache = results.cache
    numbers = sorted({cache.rows if sae.rows is None else sae.rows for sae in results.saes})
    split = "held-out" if cache.split == "heldout" else "TRAINING"
    measured = [f"{' or '.join(f'{number:,}' for number in numbers)} {split} rows"]
    scored = results.saes[0].language_model
    if scored is not None:
        measured.append(
            f"{scored.num_tokens:,} tokens for CE and KL: clean {scored.ce_clean:.4f}, "
            f"zero-ablated {scored.ce_zero:.4f} nats"
        )
    if any(sae.rule == "batch" for sae in results.saes):
        measured.append("latents selected by the rule of training")
    refused = [
        f"no absorption: {sae.absorption.refused}"
        for sae in results.saes
        if sae.absorption is not None and sae.absorption.refused
    ]
    lines = [
        format_columns(rows, num_text=num_text),
        f"measured on {'; '.join(measured)}",
        *dict.fromkeys(refused),
    ]
    return "\n".join([*lines, *_hook_lines(results), *_overlap_lines(results)])


def _hook_lines(results: Results) -> list[str]:
    """How well crosscoders do at each of their hooks, and the mean share of decoder norms there."""
    heads = ("SAE", "at hook", "FVU", "MSE", "decoder share", "CE rec.", "KL score")
    rows: list[tuple[str, ...]] = [heads]
    for sae in results.saes:
        for one in sae.hooks:
            cost = one.language_model
            figures = (_number(one.normalized.fvu), f"{one.normalized.mse:.3g}")
            costs = (cost.ce_recovered, cost.kl_score) if cost is not None else (None, None)
            share = f"{100 * one.mean_decoder_share:.1f} %"
            rows.append((sae.name, one.hook, *figures, share, *map(_number, costs)))
    return ["", format_columns(rows, num_text=2)] if len(rows) > 1 else []


def _overlap_lines(results: Results) -> list[str]:
    """How many directions pairs of SAEs share, the most alike first."""
    if not results.overlap:
        return []
    rows = [("directions of", "and of", "MMCS", "reverse", "matched 1:1")]
    ordered = sorted(results.overlap, key=lambda pair: -max(pair.mmcs_a_in_b, pair.mmcs_b_in_a))
    for pair in ordered[:_MOST_PAIRS]:
        matched = "-" if pair.matching is None else f"{100 * pair.matching.share:.1f} %"
        rows.append((pair.a, pair.b, f"{pair.mmcs_a_in_b:.3f}", f"{pair.mmcs_b_in_a:.3f}", matched))
    left_out = len(ordered) - _MOST_PAIRS
    rest = [f"and {left_out} pairs more in the results file"] if left_out > 0 else []
    return ["", format_columns(rows, num_text=2), *rest]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
