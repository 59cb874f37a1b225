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
    "dying",
    ">10 %",
    "nearest",
    "CE rec.",
    "KL score",
    "top-1",
)


_PROBED = ("probe k=1", "k=5", "all")
_ABSORBED = ("absorbed",)
_MOST_PAIRS = 10


def format_table(results: Results) -> str:
    """One line per SAE, and a last line that says on which rows and tokens they were measured."""
    probed = any(sae.probing for sae in results.saes)
    absorbed = any(sae.absorption is not None for sae in results.saes)
    several = len({sae.place for sae in results.saes}) > 1
    heads = (*_COLUMNS, *(_PROBED if probed else ()), *(_ABSORBED if absorbed else ()))
    rows = [heads, *(_row(sae, probed, absorbed) for sae in results.saes)]
    if several:
        places = ("hook", *(sae.place for sae in results.saes))
        rows = [(*row[:2], place, *row[2:]) for row, place in zip(rows, places, strict=True)]
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
        format_columns(rows, num_text=3 if several else 2),
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


def _row(sae: SaeResult, probed: bool, absorbed: bool) -> tuple[str, ...]:
    codes, normalized, cost = sae.codes, sae.normalized, sae.language_model
    cells = [
        sae.name,
        sae.kind,
        f"{sae.num_latents:,}",
        f"{codes.l0:.1f}",
        _number(normalized.fvu),
        f"{normalized.mse:.3g}",
        f"{normalized.cosine:.4f}",
        f"{100 * codes.alive_share:.1f} %",
        f"{codes.dead:,}",
        "-" if codes.dying is None else f"{codes.dying:,}",
        f"{100 * codes.dense_share:.2f} %",
        "-" if sae.collapse is None else f"{sae.collapse.nearest_cosine:.3f}",
        _number(None if cost is None else cost.ce_recovered),
        _number(None if cost is None else cost.kl_score),
        _number(None if cost is None else cost.top1_sae),
    ]
    if probed:
        cells += [_number(sae.probe_accuracy(k)) for k in ("1", "5", None)]
    if absorbed:
        cells.append(_number(None if sae.absorption is None else sae.absorption.absorption_fraction))
    return tuple(cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
