"""What the seeds of two arms say about a claim: paired differences against both standard deviations."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import exp, log
from statistics import mean, stdev

Figures = Mapping[str, Mapping[str, list[float]]]  # arm -> figure -> value for each seed
LOSSES = ("fvu", "mse")
ALIKE = 0.02  # arms whose means differ by no more than this share are alike
COEFFICIENT = re.compile(r"_c[0-9.]+(?=_k\d+$)")  # in the name of an arm


class Outcome(StrEnum):
    """What the seeds say about a claim."""

    HOLDS = "holds here"
    OPPOSITE = "the opposite holds here"
    UNCERTAIN = "cannot be told here"
    SATURATED = "cannot be told here: saturated"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome, and the figures of both arms that it rests on."""

    outcome: Outcome
    figure: str
    one: str
    other: str
    values: tuple[list[float], list[float]]

    def __str__(self) -> str:
        a, b = self.values
        if self.outcome is Outcome.SATURATED:
            return f"**{self.outcome}** ({self.figure} is {a[0]:.4g} in every run of both)"
        differences = [y - x for x, y in zip(a, b, strict=True)]
        signs = "".join("+" if d > 0 else "−" if d < 0 else "0" for d in differences)
        return (
            f"**{self.outcome}** ({self.figure} {show(a)} of `{self.one}`, {show(b)} of `{self.other}`; "
            f"signs by seed {signs})"
        )


def compare(found: Figures, figure: str, lower: str, higher: str, by: float = 0.0) -> Verdict:
    """Whether ``lower`` has less of ``figure`` than ``higher``: by both deviations, and for every seed.

    With ``by`` it must be less by more than that.
    """
    a, b = found[lower][figure], found[higher][figure]
    by_sign = {1: Outcome.HOLDS, -1: Outcome.OPPOSITE, 0: Outcome.UNCERTAIN}
    outcome = by_sign[_sign(a, [y - by for y in b])]
    if len({*a, *b}) == 1:  # every latent, or none: both are at a limit of the figure
        outcome = Outcome.SATURATED
    return Verdict(outcome=outcome, figure=figure, one=lower, other=higher, values=(a, b))


def compare_alike(found: Figures, figure: str, one: str, other: str) -> Verdict:
    """Whether the means of two arms differ by at most :data:`ALIKE` of the larger one.

    If they differ by more, the seeds must agree on it, as in :func:`compare`.
    """
    a, b = found[one][figure], found[other][figure]
    if abs(mean(a) - mean(b)) <= ALIKE * max(abs(mean(a)), abs(mean(b))):
        outcome = Outcome.HOLDS
    else:
        outcome = Outcome.OPPOSITE if _sign(a, b) else Outcome.UNCERTAIN
    return Verdict(outcome=outcome, figure=figure, one=one, other=other, values=(a, b))


def at_equal_l0(
    found: Figures, figure: str, arms: Mapping[int, str], k: int, slope_of: Mapping[int, str]
) -> list[float]:
    """``figure`` (a loss above 0) of the arm with ``k``, at a mean L0 of exactly k: one value for each seed.

    Between neighbouring k losses follow a power of L0 closely. The power is that of ``slope_of`` between k
    and its neighbour on the side of the L0 (on the other side at the ends), for each seed; that of ``arms``
    where they have more than one k.

    Args:
        arms: k -> name of the arm.
    """
    base = arms if len(arms) > 1 else slope_of
    values = []
    for seed, (loss, l0) in enumerate(zip(found[arms[k]][figure], found[arms[k]]["l0"], strict=True)):
        least, most = (found[base[one]] for one in _neighbours(sorted(base), k, l0))
        run = log(most["l0"][seed] / least["l0"][seed])
        power = log(most[figure][seed] / least[figure][seed]) / run if run else 0.0
        values.append(loss * (k / l0) ** power)
    return values


def _neighbours(ks: Sequence[int], k: int, l0: float) -> tuple[int, int]:
    """Two neighbours among ``ks``, ascending: ``k`` and the next on the side of ``l0``, if there is one."""
    steps = list(pairwise(ks))
    if l0 < k:
        return next((step for step in reversed(steps) if step[0] < k), steps[0])
    return next((step for step in steps if step[1] > k), steps[-1])


def between_coefficients(found: Figures) -> dict[str, Mapping[str, list[float]]]:
    """The figures, where arms that differ in a coefficient alone, ``<arm>_c<coefficient>_k<k>``, became one
    arm ``<arm>_k<k>``: its figures at a mean L0 of k, seed by seed, on the line through its two arms.

    Losses are lines in logarithms, all other figures are lines in log L0. ``measured l0`` has both ends.
    """
    groups: dict[str, list[Mapping[str, list[float]]]] = defaultdict(list)
    for name, figures in found.items():
        groups[COEFFICIENT.sub("", name)].append(figures)
    return {
        name: _at_l0(*arms, int(name.rpartition("_k")[2])) if len(arms) == 2 else arms[0]
        for name, arms in groups.items()
    }


def _at_l0(
    one: Mapping[str, list[float]], other: Mapping[str, list[float]], k: int
) -> Mapping[str, list[float]]:
    shares = [log(k / a) / log(b / a) for a, b in zip(one["l0"], other["l0"], strict=True)]
    found: dict[str, list[float]] = {}
    for figure in one:
        if not len(one[figure]) == len(other.get(figure, ())) == len(shares):
            continue  # not defined for every seed
        values = zip(one[figure], other[figure], shares, strict=True)
        if figure in LOSSES:
            found[figure] = [a * exp(share * log(b / a)) for a, b, share in values]
        else:
            found[figure] = [a + share * (b - a) for a, b, share in values]
    ends = [mean(one["l0"]), mean(other["l0"])]
    return {**found, "l0": [float(k)] * len(shares), "measured l0": ends}


def show(values: list[float]) -> str:
    """Mean and standard deviation."""
    largest = max(map(abs, values))
    digits = 0 if largest >= 100 else 1 if largest >= 10 else 2 if largest >= 1 else 4
    tiny = 0 < largest < 1e-2
    shown = f"{mean(values):.2e}" if tiny else f"{mean(values):.{digits}f}"
    if len(values) == 1:
        return shown
    return f"{shown} ± {stdev(values):.0e}" if tiny else f"{shown} ± {stdev(values):.{digits}f}"


def _sign(a: list[float], b: list[float]) -> int:
    """1 if b is larger than a, -1 if it is smaller: by both standard deviations, and for every seed."""
    differences = [y - x for x, y in zip(a, b, strict=True)]
    if len(a) < 2 or abs(mean(differences)) <= stdev(a) + stdev(b):
        return 0
    return 1 if min(differences) > 0 else -1 if max(differences) < 0 else 0
