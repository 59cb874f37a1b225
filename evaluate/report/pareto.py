"""Figures of what SAEs cost against how sparse they are: each SAE a point, and the front that none beats."""

from collections.abc import Callable, Sequence

from ..results import SaeResult
from .comparison import ReportEntry
from .figure import Axis, Figure, Point, Series, spreads_widely


def family_of(result: SaeResult) -> tuple[str, str, int]:
    """SAEs of one family differ in sparsity only: hook or hooks, kind, size."""
    return result.place, result.kind, result.num_latents


def pareto_front(points: Sequence[Point], *, high_y: bool) -> list[Point]:
    """The points that no other one beats: x as small as possible, y as large (``high_y``) or as small."""
    front: list[Point] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if high_y else p[1])):
        if not front or (y > front[-1][1] if high_y else y < front[-1][1]):
            front.append((x, y))
    return front


def _scatter(
    entries: Sequence[ReportEntry],
    title: str,
    x: Axis,
    y: Axis,
    values: Callable[[SaeResult], tuple[float | None, float | None]],
    intervals: Callable[[SaeResult], tuple[Sequence[float | None], Sequence[float | None]]],
    *,
    high_y: bool,
) -> Figure:
    series: list[Series] = []
    families: dict[tuple[str, str, int], list[int]] = {}
    for number, entry in enumerate(entries):
        found = values(entry.result)
        if found[0] is None or found[1] is None:
            continue
        spread = [*intervals(entry.result)[0], *intervals(entry.result)[1]]
        facts = [("alive latents", f"{entry.result.codes.alive:,}")]
        series.append(
            Series(sae=number, points=[(found[0], found[1])], intervals=[list(spread)], facts=facts)
        )
        families.setdefault(family_of(entry.result), []).append(number)
    place = {one.sae: one.points[0] for one in series}
    return Figure(
        section="pareto",
        title=title,
        kind="scatter",
        x=x,
        y=y,
        series=series,
        links=[sorted(numbers, key=lambda n: place[n]) for numbers in families.values() if len(numbers) > 1],
        front=pareto_front(list(place.values()), high_y=high_y),
        better="↖ better" if high_y else "↙ better",
    )


def make_pareto_figures(entries: Sequence[ReportEntry]) -> list[Figure]:
    """FVU, MSE and CE recovered against L0, and probing against absorption; each maybe without a point."""
    l0 = Axis(
        label="L0 (active latents per token)",
        log=spreads_widely([entry.result.codes.l0 for entry in entries], 4),
        pad=0.12,
    )

    def codes(result: SaeResult) -> Sequence[float | None]:
        return result.codes.intervals.get("l0", (None, None))

    def against_l0(
        title: str, label: str, value: Callable[[SaeResult], float | None], name: str, *, high_y: bool
    ) -> Figure:
        def interval(result: SaeResult) -> Sequence[float | None]:
            part = result.language_model if name == "ce_recovered" else result.normalized
            return (None, None) if part is None else part.intervals.get(name, (None, None))

        return _scatter(
            entries,
            title,
            l0,
            Axis(label=label, pad=0.15),
            lambda result: (result.codes.l0, value(result)),
            lambda result: (codes(result), interval(result)),
            high_y=high_y,
        )

    def ce(result: SaeResult) -> float | None:
        return None if result.language_model is None else result.language_model.ce_recovered

    def absorbed(result: SaeResult) -> float | None:
        return None if result.absorption is None else result.absorption.absorption_fraction

    return [
        against_l0(
            "L0 and FVU", "fraction of variance unexplained", lambda r: r.normalized.fvu, "fvu", high_y=False
        ),
        against_l0(
            "L0 and MSE", "mean squared error, normalized", lambda r: r.normalized.mse, "mse", high_y=False
        ),
        against_l0("L0 and CE loss recovered", "CE loss recovered", ce, "ce_recovered", high_y=True),
        _scatter(
            entries,
            "Absorption and probing",
            Axis(label="first letters absorbed", pad=0.15),
            Axis(label="accuracy of probes of one latent", pad=0.15),
            lambda result: (absorbed(result), result.probe_accuracy("1")),
            lambda result: (
                (None, None)
                if result.absorption is None
                else result.absorption.intervals.get("absorption_fraction", (None, None)),
                _only_interval(result),
            ),
            high_y=True,
        ),
    ]


def _only_interval(result: SaeResult) -> Sequence[float | None]:
    """The interval of a probing accuracy, which is known for one set of labelled texts only."""
    found = result.probing[0].sparse.get("1") if len(result.probing) == 1 else None
    return (None, None) if found is None or found.interval is None else found.interval
