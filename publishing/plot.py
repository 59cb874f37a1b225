"""The plot of a model card, as SVG: sparsity against fidelity, and how often latents fire."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from ..evaluate.results import SaeResult

WIDTH, HEIGHT = 860, 330
_PANEL, _LEFT, _TOP, _BOTTOM = 350, 62, 40, 262  # of a panel: its width, and where its axes are
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1a1f26}.title{font-weight:600;font-size:13px}"
    ".grid{stroke:#e9ecf0}.axis{stroke:#8b95a3}.this{fill:#d55e00}.other{fill:#9aa5b1}"
    ".line{fill:none;stroke:#0072b2;stroke-width:2}.small{font-size:11px;fill:#5a6472}"
)


def draw_plot(result: SaeResult, others: Sequence[SaeResult]) -> str:
    """An SVG document of two panels.

    Args:
        result: the SAE of the card.
        others: SAEs of the same run and hook, drawn beside it.
    """
    title = f"Results of {result.name}"
    body = [*_pareto(result, others), *_densities(result)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        + "".join(body)
        + "</svg>\n"
    )


def _pareto(result: SaeResult, others: Sequence[SaeResult]) -> Iterator[str]:
    points = [(sae, sae.normalized.fvu) for sae in (*others, result)]
    known = [(sae, fvu) for sae, fvu in points if fvu is not None]
    yield from _frame(0, "Sparsity and fidelity", "active latents a row (L0)", "FVU")
    if not known:
        yield _text(_LEFT + _PANEL / 2, 150, "FVU was not measured", "small", "middle")
        return
    l0s, fvus = [sae.codes.l0 for sae, _ in known], [fvu for _, fvu in known]
    x = _scale(0, max(l0s) * 1.15 or 1, _LEFT, _LEFT + _PANEL)
    y = _scale(0, max(fvus) * 1.15 or 1, _BOTTOM, _TOP)
    yield from _ticks(x, _steps(max(l0s) * 1.15 or 1), vertical=False)
    yield from _ticks(y, _steps(max(fvus) * 1.15 or 1), vertical=True)
    for sae, fvu in known:
        this = sae is result
        at = (x(sae.codes.l0), y(fvu))
        kind, radius = ("this", 6) if this else ("other", 4)
        yield f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}">'
        yield f"<title>{escape(sae.name)}: L0 {sae.codes.l0:.1f}, FVU {fvu:.4f}</title></circle>"
        if this:
            near_edge = at[0] > _LEFT + 0.7 * _PANEL
            yield _text(
                at[0] + (-9 if near_edge else 9), at[1] - 8, sae.name, "", "end" if near_edge else "start"
            )


def _densities(result: SaeResult) -> Iterator[str]:
    """Density of the alive latents by rank, both as logarithms."""
    left = WIDTH / 2 + 5
    yield from _frame(left, "How often latents fire", "latents by rank", "share of rows")
    pairs = [
        (r, d) for r, d in zip(result.density.rank, result.density.density, strict=False) if r > 0 and d > 0
    ]
    if len(pairs) < 2:
        yield _text(left + _LEFT + _PANEL / 2, 150, "too few latents fire", "small", "middle")
        return
    ranks, densities = [math.log10(r) for r, _ in pairs], [math.log10(d) for _, d in pairs]
    low, high = math.floor(min(densities)), math.ceil(max(densities))
    high = max(high, low + 1)
    x = _scale(0, max(ranks) or 1, left + _LEFT, left + _LEFT + _PANEL)
    y = _scale(low, high, _BOTTOM, _TOP)
    yield from _ticks(
        x, range(math.floor(max(ranks)) + 1), vertical=False, show=lambda v: f"{10 ** int(v):,}"
    )
    yield from _ticks(y, range(low, high + 1), vertical=True, show=lambda v: f"{10.0**v:g}", left=left)
    line = " ".join(f"{x(r):.1f},{y(d):.1f}" for r, d in zip(ranks, densities, strict=True))
    yield f'<polyline class="line" points="{line}"/>'


def _frame(left: float, title: str, x_label: str, y_label: str) -> Iterator[str]:
    middle = left + _LEFT + _PANEL / 2
    yield _text(middle, 22, title, "title", "middle")
    yield _text(middle, HEIGHT - 22, x_label, "", "middle")
    y = (_TOP + _BOTTOM) / 2
    turned = f"translate({left + 14:.0f} {y:.0f}) rotate(-90)"
    yield f'<text transform="{turned}" text-anchor="middle">{y_label}</text>'
    yield f'<path class="axis" fill="none" d="M{left + _LEFT} {_TOP}V{_BOTTOM}H{left + _LEFT + _PANEL}"/>'


def _ticks(
    place: Callable[[float], float],
    values: Sequence[float],
    *,
    vertical: bool,
    show: Callable[[float], str] = lambda value: f"{value:g}",
    left: float = 0,
) -> Iterator[str]:
    for value in values:
        at = place(value)
        if vertical:
            start = left + _LEFT
            yield f'<path class="grid" d="M{start} {at:.1f}h{_PANEL}"/>'
            yield _text(start - 6, at + 4, show(value), "small", "end")
        else:
            yield f'<path class="grid" d="M{at:.1f} {_TOP}V{_BOTTOM}"/>'
            yield _text(at, _BOTTOM + 17, show(value), "small", "middle")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _steps(most: float) -> list[float]:
    """Round numbers from 0 to ``most``, some five of them."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if most / (factor * power) <= 6)
    return [round(step * i, 12) for i in range(int(most / step) + 1)]


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
