"""Figures of SAEs at several layers: fidelity by block, and where the decoders of crosscoders write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...common.hook_names import block_of
from ..results import LanguageModelMetrics, ReconstructionMetrics, SaeResult
from .comparison import ReportEntry
from .figure import Axis, Figure, Series, make_steps

MOST_DIGITS = 6  # of a block's number; results may come from anybody
Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Block:
    """An SAE at one of the blocks that it reconstructs."""

    number: int
    normalized: ReconstructionMetrics
    cost: LanguageModelMetrics | None


def make_layer_figures(entries: Sequence[ReportEntry]) -> list[Figure]:
    """Fidelity by block if the SAEs reconstruct several, and where the decoders of crosscoders write."""
    found = [_blocks(entry.result) for entry in entries]
    same: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        same.setdefault(entry.name.replace(f"{entry.result.hook}-", "", 1), []).append(number)

    def by_block(title: str, label: str, value: Callable[[Block], tuple[float | None, Interval]]) -> Figure:
        series = []
        for number, entry in enumerate(entries):
            figures = [(block.number, *value(block)) for block in found[number]]
            known = [(block, y, interval) for block, y, interval in figures if y is not None]
            series.append(
                Series(
                    sae=number,
                    points=[(float(block), y) for block, y, _ in known],
                    intervals=[[None, None, *interval] for _, _, interval in known],
                    facts=[("L0", f"{entry.result.codes.l0:.4g}")],
                )
            )
        many = [numbers for numbers in same.values() if sum(len(series[n].points) for n in numbers) > 1]
        x, y = Axis(label="block", pad=0.12, unit="block"), Axis(label=label, pad=0.15)
        return Figure(section="layers", title=title, kind="scatter", x=x, y=y, series=series, links=many)

    several = len({block.number for blocks in found for block in blocks}) > 1
    hooks = dict.fromkeys(one.hook for entry in entries for one in entry.result.hooks)
    return [
        *([by_block("FVU by layer", "fraction of variance unexplained", _fvu_at)] if several else []),
        *([by_block("CE loss recovered by layer", "CE loss recovered", _ce_at)] if several else []),
        *(_decoder_shares(entries, hook) for hook in hooks),
    ]


def _blocks(result: SaeResult) -> list[Block]:
    """The blocks that an SAE reconstructs; none for hooks without a number."""
    found = [(one.hook, one.normalized, one.language_model) for one in result.hooks]
    places = found or [(result.target or result.hook, result.normalized, result.language_model)]
    numbered = [(block_of(hook), normalized, cost) for hook, normalized, cost in places]
    return [
        Block(int(block), normalized, cost)
        for block, normalized, cost in numbered
        if block is not None and len(block) <= MOST_DIGITS
    ]


def _fvu_at(block: Block) -> tuple[float | None, Interval]:
    return block.normalized.fvu, block.normalized.intervals.get("fvu", (None, None))


def _ce_at(block: Block) -> tuple[float | None, Interval]:
    if block.cost is None:
        return None, (None, None)
    return block.cost.ce_recovered, block.cost.intervals.get("ce_recovered", (None, None))


def _decoder_shares(entries: Sequence[ReportEntry], hook: str) -> Figure:
    return Figure(
        section="layers",
        title=f"Decoder norm at {hook}",
        note="1: latents of this hook alone",
        kind="step",
        x=Axis(label="share of the decoder norm", pad=0, unit="share"),
        y=Axis(label="alive latents", zero=True),
        series=[
            make_steps(number, one.decoder_shares)
            for number, entry in enumerate(entries)
            for one in entry.result.hooks
            if one.hook == hook
        ],
    )
