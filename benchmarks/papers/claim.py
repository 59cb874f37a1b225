"""One claim of a paper: the arms that test it, and its verdict for each k."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from verdicts import Figures, Verdict, at_equal_l0, between_coefficients, compare, compare_alike

LAYER = re.compile(r"layer(\d+)_")  # begins the names of arms at another layer than the form's
EQUAL_L0 = {"fvu at L0 = k": "fvu", "mse at L0 = k": "mse"}  # figure -> the loss it is made of


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim. ``lower`` and ``higher`` are arms without ``_k<k>``; a number in their place is a value that
    the paper gives. ``alike`` says that the two do not differ, ``by`` how much lower the first one is.

    ``why`` is what we know where it does not hold, and is shown only there. ``ours`` is a question that the
    paper does not answer.
    """

    where: str
    text: str
    figure: str
    lower: str | float
    higher: str | float
    alike: bool = False
    by: float = 0.0
    ours: bool = False
    why: str = ""

    def at_layer(self, prefix: str) -> "Claim":
        """The same claim about the arms whose names begin with ``prefix``."""
        lower, higher = (
            f"{prefix}{side}" if isinstance(side, str) else side for side in (self.lower, self.higher)
        )
        return replace(self, lower=lower, higher=higher)

    def verdicts(self, found: Figures) -> Iterator[tuple[int, Verdict]]:
        """The verdict for each k for which both arms were trained."""
        (first, *_) = arms = [side for side in (self.lower, self.higher) if isinstance(side, str)]
        for k in ks_of(found, first):
            if not all(self.figure in found.get(f"{arm}_k{k}", {}) for arm in arms):
                continue
            tested, names = dict(found), []
            for side in (self.lower, self.higher):
                if isinstance(side, str):
                    names.append(f"{side}_k{k}")
                else:
                    names.append(f"the paper's {side:g}")
                    tested[names[-1]] = {self.figure: [side] * len(found[f"{first}_k{k}"][self.figure])}
            if self.alike:
                yield k, compare_alike(tested, self.figure, *names)
            else:
                yield k, compare(tested, self.figure, *names, by=self.by)


def ks_of(found: Figures, arm: str) -> list[int]:
    """Every k for which ``arm`` was trained, ascending."""
    ends = (name.removeprefix(f"{arm}_k") for name in found if name.startswith(f"{arm}_k"))
    return sorted(int(end) for end in ends if end.isdigit())


def with_equal_l0(found: Figures) -> dict[str, dict[str, list[float]]]:
    """The figures with ``fvu at L0 = k`` and ``mse at L0 = k`` beside them, for arms whose k is known.

    Arms with two coefficients have become one arm, without figures where its k is not between their L0s.
    """
    found = {name: _within_ends(name, figures) for name, figures in between_coefficients(found).items()}
    richer = {}
    for name, figures in found.items():
        arm, _, k = name.rpartition("_k")
        layer = LAYER.match(name)
        topk = f"{layer.group()}topk" if layer else "topk"
        reference = {k: f"{topk}_k{k}" for k in ks_of(found, topk)}
        richer[name] = dict(figures)
        if arm == topk and "fvu" in figures:
            richer[name]["fvu_batch"] = figures["fvu"]  # its rule looks at one row at a time
        if "fvu_4_kept" in figures:
            pairs = zip(figures["fvu_4_kept"], figures["fvu"], strict=True)
            richer[name]["fvu_4_kept / fvu"] = [kept / whole for kept, whole in pairs]
        if not k.isdigit() or "l0" not in figures or len(reference) < 2:
            continue
        arms = {k: f"{arm}_k{k}" for k in ks_of(found, arm)}
        for figure, loss in EQUAL_L0.items():
            if all(loss in found[one] for one in (*arms.values(), *reference.values())):
                richer[name][figure] = at_equal_l0(found, loss, arms, int(k), reference)
    return richer


def _within_ends(name: str, figures: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
    ends = figures.get("measured l0")
    if ends is None or min(ends) <= int(name.rpartition("_k")[2]) <= max(ends):
        return figures
    return {"measured l0": ends}
