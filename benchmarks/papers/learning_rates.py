"""The peak learning rate that suits each kind: on a grid that grows until the best is not at its end."""

from collections import defaultdict
from collections.abc import Mapping
from math import inf
from typing import Any

from verdicts import COEFFICIENT, between_coefficients


def best_rates(section: Mapping[str, Any]) -> dict[str, float]:
    """For each kind in section ``rates`` the learning rate of the lowest FVU.

    A rate at which an arm of the kind diverged is not chosen.
    """
    fvu = fvu_by_rate(section)
    return {kind: min(by_rate, key=lambda rate: (by_rate[rate], rate)) for kind, by_rate in fvu.items()}


def rates_to_try(section: Mapping[str, Any]) -> dict[str, float]:
    """The next rate of each kind whose best one is the largest or the smallest that was tried: twice or half
    of it. Empty where the best rate of every kind lies between others.
    """
    next_ones = {}
    for kind, by_rate in fvu_by_rate(section).items():
        best = best_rates(section)[kind]
        if best == max(by_rate):
            next_ones[kind] = 2 * best
        elif best == min(by_rate):
            next_ones[kind] = best / 2
    return next_ones


def arms_to_measure(
    section: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], rates: Mapping[str, float]
) -> list[str]:
    """The names of those ``arms`` that a measured section of ``TUNED`` lacks, or whose kinds have got other
    learning rates since.
    """
    return [
        name
        for name, arm in arms.items()
        if name not in section["arms"]
        or rate_of(arm["kind"], section["rates"]) != rate_of(arm["kind"], rates)
    ]


def rate_of(kind: str, rates: Mapping[str, float]) -> float | None:
    """The learning rate of a kind: that of BatchTopK where the kind was not tried, None without any."""
    return rates.get(kind, rates.get("batch_topk"))


def fvu_by_rate(section: Mapping[str, Any]) -> dict[str, dict[float, float]]:
    """Kind -> learning rate -> FVU at the end of training, infinite where an arm failed.

    Arms are named ``lr<rate>_<name>_k<k>``. Of those with two coefficients it is the FVU at L0 = k.
    """
    arms = section["arms"]
    kinds = {_without_rate(name): arm["variant"]["kind"] for name, arm in arms.items()}
    found: dict[str, dict[float, float]] = defaultdict(dict)
    merged = between_coefficients({name: arm["figures"] for name, arm in arms.items()})
    for name, figures in merged.items():
        (fvu,) = figures["fvu"]
        found[kinds[_without_rate(name)]][rate_of_arm(name)] = fvu
    for name in section["failed"]:
        if kind := kinds.get(_without_rate(name.rpartition("_seed")[0])):
            found[kind][rate_of_arm(name)] = inf
    return found


def rate_of_arm(name: str) -> float:
    """The learning rate in the name of an arm of section ``rates``."""
    return float(name.partition("_")[0].removeprefix("lr"))


def _without_rate(name: str) -> str:
    return COEFFICIENT.sub("", name).partition("_")[2]
