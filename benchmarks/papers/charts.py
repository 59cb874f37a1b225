"""Line charts as SVG text, small enough to be committed: axes, ticks, series with intervals, a legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

COLOURS = ("#1f6fb4", "#d1495b", "#2e8540", "#8e44ad", "#e08a00", "#00838f", "#6d4c41", "#555555", "#c2185b")
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 34, 48
TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one line; ``low`` and ``high`` are the ends of their intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    marks: bool = True


@dataclass(frozen=True)
class Axis:
    """Values between ``least`` and ``most`` on the pixels from ``start`` to ``end``."""

    least: float
    most: float
    start: float
    end: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """The pixel of a value."""
        least, most, value = (
            log10(max(v, TINY)) if self.logarithmic else v for v in (self.least, self.most, value)
        )
        share = (value - least) / (most - least) if most > least else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to write at the axis."""
        if self.logarithmic:
            decades = range(floor(log10(self.least)), ceil(log10(self.most)) + 1)
            steps = (1,) if len(decades) > 3 else (1, 2, 5)
            values = [step * 10.0**d for d in decades for step in steps]
        else:
            rough = (self.most - self.least) / 5 or 1.0
            unit = 10.0 ** floor(log10(rough))
            step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
            values = [step * i for i in range(floor(self.least / step), ceil(self.most / step) + 1)]
        slack = 1e-9 * abs(self.most - self.least)
        return [v for v in values if self.least - slack <= v <= self.most + slack]


def draw(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    width: int = 820,
    height: int = 420,
) -> str:
    """The chart as the text of an SVG file."""
    x_values = [v for s in series for v in s.x if not log_x or v > 0]
    y_values = [
        v for s in series for part in (s.y, s.low or (), s.high or ()) for v in part if not log_y or v > 0
    ]
    x = Axis(min(x_values), max(x_values), LEFT, width - RIGHT, log_x)
    y = Axis(*_padded(min(y_values), max(y_values), log_y), height - BOTTOM, TOP, log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for value in x.ticks():
        place = x.place(value)
        parts.append(f'<path d="M{place:.1f} {TOP}V{height - BOTTOM}" stroke="#e4e4e4"/>')
        parts.append(
            f'<text x="{place:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    for value in y.ticks():
        place = y.place(value)
        parts.append(f'<path d="M{LEFT} {place:.1f}H{width - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 10}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(16 {(TOP + height - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    for i, one in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        parts += _line(one, x, y, colour)
        top = TOP + 8 + 18 * i
        parts.append(f'<path d="M{width - RIGHT + 12} {top}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{width - RIGHT + 36}" y="{top + 4}">{escape(one.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(one: Series, x: Axis, y: Axis, colour: str) -> list[str]:
    kept = [
        i
        for i in range(len(one.x))
        if not (x.logarithmic and one.x[i] <= 0) and not (y.logarithmic and one.y[i] <= 0)
    ]
    places = [(x.place(one.x[i]), y.place(one.y[i])) for i in kept]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = (
        [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'] if len(places) > 1 else []
    )
    if one.marks:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
    if one.low is not None and one.high is not None:
        for i, (a, _) in zip(kept, places, strict=True):
            parts.append(
                f'<path d="M{a:.1f} {y.place(one.low[i]):.1f}V{y.place(one.high[i]):.1f}" stroke="{colour}"/>'
            )
    return parts


def _padded(least: float, most: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        return least / 1.1, most * 1.1
    room = 0.05 * (most - least) or 0.05 * abs(most) or 1.0
    return least - room, most + room
