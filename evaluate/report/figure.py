"""What a figure of a report is: axes, and a series for each SAE."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..results import Histogram

Unit = Literal["", "percent", "rows", "rank", "bin", "count", "block", "share"]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis. ``unit`` says how values are written; ``zero`` that it begins at 0; ``end`` where it ends."""

    label: str
    log: bool = False
    zero: bool = False
    pad: float = 0.04
    end: float | None = None
    unit: Unit = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What one SAE has in a figure.

    Attributes:
        sae: number of the SAE in the report.
        end: right edge of the last bin of a histogram, whose points are left edges and heights.
        fit: points of a law that was fitted to these.
        intervals: 95 % intervals of the points, [low x, high x, low y, high y] each; None where unknown.
        facts: what else to say of the one point of a scatter plot: labels and texts.
    """

    sae: int
    points: list[Point]
    end: float | None = None
    fit: list[Point] = field(default_factory=list)
    intervals: list[list[float | None]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of ``kind`` scatter, line, or step (a histogram; ``outline`` draws its upper edge only).

    Attributes:
        section: of the page.
        links: SAEs (numbers) all of whose points are joined, by their x.
        front: the points that no other point beats in both coordinates.
        better: which corner is better, in words.
    """

    section: str
    title: str
    kind: Literal["scatter", "line", "step"]
    x: Axis
    y: Axis
    series: list[Series]
    note: str = ""
    outline: bool = False
    links: list[list[int]] = field(default_factory=list)
    front: list[Point] = field(default_factory=list)
    better: str = ""

    def as_json(self) -> dict[str, Any]:
        """The figure as JSON values."""
        return asdict(self)


def make_steps(number: int, histogram: Histogram) -> Series:
    """A histogram as the series of the SAE with this ``number``."""
    end = histogram.edges[-1] if histogram.edges else None
    return Series(
        sae=number,
        points=[(x, float(y)) for x, y in zip(histogram.edges, histogram.counts, strict=False)],
        end=end,
    )


def spreads_widely(values: Sequence[float], factor: float) -> bool:
    """Whether the largest of the values above 0 is more than ``factor`` times the smallest: a log axis."""
    usable = [value for value in values if value > 0]
    return bool(usable) and max(usable) / min(usable) > factor
