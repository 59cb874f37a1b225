"""The figures of a report, as data: the page draws them by its script, and ``--figures`` by matplotlib.

A figure is made of series, one for each SAE; coordinates are the numbers of the results.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import exp, log

from ...common.errors import UsageError
from ..results import Histogram, ZipfFit
from .comparison import ReportEntry
from .figure import Axis, Figure, Point, Series, make_steps, spreads_widely
from .layers import make_layer_figures
from .pareto import make_pareto_figures

_DIGITS = 5
_LARGEST = 1e100  # number in a figure


def make_figures(entries: Sequence[ReportEntry]) -> list[Figure]:
    """All figures for which there is something to draw, in the order of the page.

    Raises:
        UsageError: the results hold numbers that no figure can have.
    """
    try:
        figures = [
            *make_pareto_figures(entries),
            *make_layer_figures(entries),
            *_training(entries),
            *_density(entries),
            *_features(entries),
            *_progressive(entries),
            *_calibration(entries),
        ]
    except OverflowError as error:
        raise UsageError(f"the results hold a number that cannot be drawn ({error}): measure again") from None
    figures = [_drawable(figure) for figure in figures]
    return [figure for figure in figures if any(series.points for series in figure.series)]


def _drawable(figure: Figure) -> Figure:
    """The figure without what no axis can show; a point goes with its interval."""
    series = []
    for one in figure.series:
        intervals = [[v if _is_drawable(v) else None for v in interval] for interval in one.intervals]
        there = [number for number, point in enumerate(one.points) if all(map(_is_drawable, point))]
        series.append(
            replace(
                one,
                points=[one.points[number] for number in there],
                fit=[point for point in one.fit if all(map(_is_drawable, point))],
                intervals=[intervals[number] for number in there if number < len(intervals)],
                end=one.end if _is_drawable(one.end) else None,
            )
        )
    front = [point for point in figure.front if all(map(_is_drawable, point))]
    return replace(figure, series=series, front=front)


def _is_drawable(value: float | None) -> bool:
    """Whether it is a number of which differences and products are finite."""
    return value is not None and -_LARGEST < value < _LARGEST


def _training(entries: Sequence[ReportEntry]) -> list[Figure]:
    def figure(title: str, key: str, label: str, *, zero: bool = False) -> Figure:
        series = [Series(sae=number, points=_curve(entry, key)) for number, entry in enumerate(entries)]
        values = [y for one in series for _, y in one.points]
        return Figure(
            section="training",
            title=title,
            kind="line",
            x=Axis(label="rows seen", pad=0.01, unit="rows"),
            y=Axis(label=label, zero=zero, log=not zero and spreads_widely(values, 8)),
            series=series,
        )

    return [
        figure("FVU", "fvu", "fraction of variance unexplained"),
        figure("L0", "l0", "active latents per token"),
        figure("Alive latents", "alive", "latents not dead", zero=True),
    ]


def _curve(entry: ReportEntry, key: str) -> list[Point]:
    if entry.training is None:
        return []
    values = entry.training["dead" if key == "alive" else key]
    return [
        (rows, entry.result.num_latents - value if key == "alive" else value)
        for rows, value in zip(entry.training["rows"], values, strict=True)
        if rows is not None and value is not None
    ]


def _density(entries: Sequence[ReportEntry]) -> list[Figure]:
    curves, histograms = [], []
    for number, entry in enumerate(entries):
        result = entry.result
        ranks = result.density.rank
        fit: list[Point] = []
        if result.zipf is not None and ranks:
            law = [(rank, _expected_density(result.zipf.log, rank)) for rank in ranks]
            fit = [(float(rank), _short(value)) for rank, value in law if 0 < value <= 1]
        densities = zip(ranks, result.density.density, strict=False)
        points: list[Point] = [(rank, _short(value)) for rank, value in densities]
        curves.append(Series(sae=number, points=points, fit=fit))
        histograms.append(make_steps(number, result.density.log10_histogram))
    return [
        Figure(
            section="density",
            title="Density by rank",
            note="alive latents, densest first; dotted: Zipf's law",
            kind="line",
            x=Axis(label="rank", log=True, pad=0.01, unit="rank"),
            y=Axis(label="density (share of tokens)", log=True, unit="percent"),
            series=curves,
        ),
        Figure(
            section="density",
            title="Density histogram",
            note="alive latents",
            kind="step",
            x=Axis(label="log₁₀ density", pad=0, unit="bin"),
            y=Axis(label="latents", zero=True),
            series=histograms,
        ),
    ]


def _expected_density(fit: ZipfFit, rank: int) -> float:
    """The density that the law expects of a rank; 0 where it says nothing."""
    try:
        return float(fit.scale * exp(-fit.alpha * log(rank + fit.beta)))
    except (ValueError, OverflowError):
        return 0.0


def _features(entries: Sequence[ReportEntry]) -> list[Figure]:
    bins = [_usable_bins(entry.result.features_per_token) for entry in entries]
    furthest = max((edges[-1] for edges, _ in bins if edges), default=0)
    heights, cumulative = [], []
    for number, (edges, shares) in enumerate(bins):
        widths = [right - left for left, right in pairwise(edges)]
        tops = [share / width for share, width in zip(shares, widths, strict=True)]
        points = list(zip(edges, tops, strict=False))
        heights.append(Series(sae=number, points=points, end=edges[-1] if edges else None))
        start: list[Point] = [(0.0, 0.0)] if edges and edges[1] > 1 else []
        sums = zip(edges[1:], accumulate(shares), strict=True)
        cumulative.append(
            Series(sae=number, points=start + [(right - 1, share) for right, share in sums], end=furthest)
        )
    # Where the number is fixed, as for TopK, all tokens are in one bin, which must not flatten the others.
    highest = [max(y for _, y in one.points) for one in heights if one.points]
    spread = [height for height in highest if height < 0.5]
    cut = 1.25 * max(spread) if spread and len(spread) < len(highest) else None
    x = Axis(label="active latents of a token", pad=0.02, unit="count")
    return [
        Figure(
            section="features",
            title="Active latents per token",
            note="spikes of fixed L0 are cut" if cut else "",
            kind="step",
            x=x,
            y=Axis(label="share of tokens", zero=True, unit="percent", end=cut),
            series=heights,
        ),
        Figure(
            section="features",
            title="Cumulative",
            note="tokens with at most so many",
            kind="step",
            outline=True,
            x=x,
            y=Axis(label="share of tokens", zero=True, unit="percent", end=1.02),
            series=cumulative,
        ),
    ]


def _usable_bins(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Edges, and the share of the tokens in each bin; empty if the histogram is not one of tokens."""
    edges, counts = histogram.edges, histogram.counts
    total = sum(counts)
    if total <= 0 or len(edges) != len(counts) + 1 or any(right <= left for left, right in pairwise(edges)):
        return [], []
    return edges, [count / total for count in counts]


def _progressive(entries: Sequence[ReportEntry]) -> list[Figure]:
    return [
        Figure(
            section="features",
            title="Progressive codes",
            note="when only the largest codes of a row are kept",
            kind="line",
            x=Axis(label="codes kept, on average", log=True, pad=0.02, unit="count"),
            y=Axis(label="fraction of variance unexplained"),
            series=[
                Series(
                    sae=number,
                    points=[
                        (step.l0, step.fvu)
                        for step in entry.result.progressive
                        if step.fvu is not None and step.l0 > 0
                    ],
                )
                for number, entry in enumerate(entries)
            ],
        )
    ]


def _calibration(entries: Sequence[ReportEntry]) -> list[Figure]:
    series = []
    for number, entry in enumerate(entries):
        interpretation = entry.result.interpretation
        calibration = None if interpretation is None else interpretation.calibration
        buckets = [] if calibration is None else [b for b in calibration.buckets if b.mean is not None]
        series.append(
            Series(
                sae=number,
                points=[((bucket.low + bucket.high) / 2, bucket.mean or 0.0) for bucket in buckets],
                intervals=[[None, None, *(bucket.interval or (None, None))] for bucket in buckets],
            )
        )
    return [
        Figure(
            section="calibration",
            title="Calibration",
            note="explanations of one bucket of activations each",
            kind="line",
            x=Axis(label="percentile of the latent's activations"),
            y=Axis(label="mean score"),
            series=series,
        )
    ]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
