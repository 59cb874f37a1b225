"""Whether the gap between Probabilistic TopK and TopK stays with more steps, or with more latents."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from forms import Form
from verdicts import Figures, show

Row = Mapping[str, Mapping[str, list[float]]]  # kind and k -> figure -> the value of each seed


def growth(sections: Mapping[str, Any], found: Figures, form: Form) -> Iterator[str]:
    """A table by the number of steps, and one by the number of latents: ``longer`` and ``widths``.

    Beside them stand the first seeds of the arms of the form's own size, ``found``.
    """
    longer = [section for name, section in sections.items() if name.startswith("longer")]
    widths = [sections["widths"]] if "widths" in sections else []
    for unit, title, more, own in (
        ("steps", "longer training", longer, form.steps),
        ("latents", "more latents", widths, form.num_latents),
    ):
        rows: dict[int, dict[str, Mapping[str, list[float]]]] = defaultdict(dict)
        for section in more:
            for name, arm in section["arms"].items():
                number, _, kind = name.removeprefix(unit).partition("_")
                rows[int(number)][kind] = arm["figures"]
        for kind in next(iter(rows.values()), {}):
            if kind in found:
                rows[own][kind] = found[kind]
        if rows:
            kinds = [kind for kind in next(iter(rows.values())) if all(kind in row for row in rows.values())]
            yield from by_number(unit, title, dict(sorted(rows.items())), kinds)


def by_number(unit: str, title: str, rows: Mapping[int, Row], kinds: Sequence[str]) -> Iterator[str]:
    """The table of the first seed of ``kinds``, all of which are compared with the first one."""
    base, others = kinds[0], kinds[1:]
    gaps = {kind: [row[kind]["mse"][0] / row[base]["mse"][0] - 1 for row in rows.values()] for kind in others}
    yield from ("", f"### Probabilistic TopK against TopK: {title}", "")
    yield (
        "The first seed, and the same learning rate for all, as in the claims above. A gap says how far MSE "
        f"is above that of `{base}`."
    )
    cells = [unit, *(f"MSE of {kind}" for kind in kinds), *(f"gap of {kind}" for kind in others)]
    cells += [f"dead of {kind}" for kind in kinds]
    yield from ("", f"| {' | '.join(cells)} |", "|---" * len(cells) + "|")
    for place, (number, row) in enumerate(rows.items()):
        cells = [f"{number:,}", *(show(row[kind]["mse"][:1]) for kind in kinds)]
        cells += [f"{gaps[kind][place]:+.1%}" for kind in others]
        cells += [show(row[kind]["dead"][:1]) for kind in kinds]
        yield f"| {' | '.join(cells)} |"
    yield ""
    numbers = list(rows)
    for kind, values in gaps.items():
        yield (
            f"From {numbers[0]:,} to {numbers[-1]:,} {unit} the gap of `{kind}` goes from "
            f"{values[0]:+.1%} to {values[-1]:+.1%}."
        )
    if unit == "steps" and len(numbers) > 1:
        yield still_falls(rows[numbers[-2]], rows[numbers[-1]], kinds, numbers[-2:])


def still_falls(before: Row, last: Row, kinds: Sequence[str], steps: Sequence[int]) -> str:
    """How much MSE fell over the last doubling of the steps."""
    fell = ", ".join(f"`{kind}` by {1 - last[kind]['mse'][0] / before[kind]['mse'][0]:.1%}" for kind in kinds)
    return f"From {steps[0]:,} to {steps[1]:,} steps MSE fell: {fell}."
