"""Whether the gap between Probabilistic TopK and TopK stays with more steps, or with more latents."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verdicts import show

Row = Mapping[str, Mapping[str, list[float]]]  # kind -> figure -> the value of the one seed


def growth(sections: Mapping[str, Any]) -> Iterator[str]:
    """A table by the number of steps, and one by the number of latents: ``longer`` and ``widths``."""
    if longer := [section for name, section in sections.items() if name.startswith("longer")]:
        yield from by_number("steps", "longer training", longer)
    if "widths" in sections:
        yield from by_number("latents", "more latents", [sections["widths"]])


def by_number(unit: str, title: str, sections: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table of arms named ``<unit><number>_<kind>_k<k>``; all are compared with the first kind."""
    rows: dict[int, dict[str, Mapping[str, list[float]]]] = defaultdict(dict)
    for section in sections:
        for name, arm in section["arms"].items():
            number, _, kind = name.removeprefix(unit).rpartition("_k")[0].partition("_")
            rows[int(number)][kind] = arm["figures"]
    rows = dict(sorted(rows.items()))
    kinds = list(rows[min(rows)])
    base, others = kinds[0], kinds[1:]
    gaps = {kind: [row[kind]["mse"][0] / row[base]["mse"][0] - 1 for row in rows.values()] for kind in others}
    yield from ("", f"### Probabilistic TopK against TopK: {title}", "")
    yield (
        "One seed, and the same learning rate for all, as in the claims above. A gap says how far MSE is "
        f"above that of `{base}`."
    )
    cells = [unit, *(f"MSE of {kind}" for kind in kinds), *(f"gap of {kind}" for kind in others)]
    cells += [f"dead of {kind}" for kind in kinds]
    yield from ("", f"| {' | '.join(cells)} |", "|---" * len(cells) + "|")
    for place, (number, row) in enumerate(rows.items()):
        cells = [f"{number:,}", *(show(row[kind]["mse"]) for kind in kinds)]
        cells += [f"{gaps[kind][place]:+.1%}" for kind in others]
        cells += [show(row[kind]["dead"]) for kind in kinds]
        yield f"| {' | '.join(cells)} |"
    yield ""
    numbers = list(rows)
    for kind, values in gaps.items():
        yield (
            f"From {numbers[0]:,} to {numbers[-1]:,} {unit} the gap of `{kind}` goes from "
            f"{values[0]:+.1%} to {values[-1]:+.1%}."
        )
    if unit == "steps" and len(numbers) > 1:
        yield still_falls(rows[numbers[-2]], rows[numbers[-1]], numbers[-2:])


def still_falls(before: Row, last: Row, steps: Sequence[int]) -> str:
    """How much MSE fell over the last doubling of the steps."""
    fell = ", ".join(f"`{kind}` by {1 - last[kind]['mse'][0] / before[kind]['mse'][0]:.1%}" for kind in last)
    return f"From {steps[0]:,} to {steps[1]:,} steps MSE fell: {fell}."
