"""What the page of the papers' claims says about two arms follows from their figures over the seeds."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "papers"))
from verdicts import Outcome, at_equal_l0, between_coefficients, compare, compare_alike, show

FEW, MORE, MANY = [1.0, 1.1, 0.9], [1.3, 1.0, 1.6], [3.0, 3.1, 2.9]


@pytest.mark.parametrize(
    ("lower", "higher", "outcome"),
    [
        (FEW, MANY, Outcome.HOLDS),
        (MANY, FEW, Outcome.OPPOSITE),
        (FEW, MORE, Outcome.UNCERTAIN),
        ([0.0, 0.0, 10.0], [20.0, 20.0, 9.0], Outcome.UNCERTAIN),  # the third seed says the opposite
        ([1.0], [2.0], Outcome.UNCERTAIN),  # one seed has no deviation
        ([5.0] * 3, [5.0] * 3, Outcome.SATURATED),
    ],
)
def test_a_difference_is_beyond_both_deviations_and_of_one_sign(
    lower: list[float], higher: list[float], outcome: Outcome
) -> None:
    verdict = compare({"a": {"dead": lower}, "b": {"dead": higher}}, "dead", "a", "b")
    assert verdict.outcome is outcome


def test_a_verdict_says_what_it_rests_on() -> None:
    found = {"a": {"dead": FEW}, "b": {"dead": MANY}, "c": {"dead": [5.0] * 3}, "d": {"dead": [5.0] * 3}}
    assert str(compare(found, "dead", "a", "b")) == (
        "**holds here** (dead 1.00 ± 0.10 of `a`, 3.00 ± 0.10 of `b`; signs by seed +++)"
    )
    saturated = str(compare(found, "dead", "c", "d"))
    assert saturated == "**cannot be told here: saturated** (dead is 5 in every run of both)"


def test_a_claim_that_nothing_changes() -> None:
    near = [1.01 * value for value in FEW]
    for other, outcome in ((near, Outcome.HOLDS), (MORE, Outcome.UNCERTAIN), (MANY, Outcome.OPPOSITE)):
        found = {"a": {"mse": FEW}, "b": {"mse": other}}
        assert compare_alike(found, "mse", "a", "b").outcome is outcome
    none = {"a": {"dead": [0.0, 0.0]}, "the paper's 0": {"dead": [0.0, 0.0]}, "b": {"dead": [0.0, 3.0]}}
    assert compare_alike(none, "dead", "a", "the paper's 0").outcome is Outcome.HOLDS
    assert compare_alike(none, "dead", "b", "the paper's 0").outcome is Outcome.UNCERTAIN


def test_a_difference_may_have_to_be_large() -> None:
    found = {"a": {"ce": [0.5, 0.5]}, "b": {"ce": [0.7, 0.71]}}
    assert compare(found, "ce", "a", "b", by=0.1).outcome is Outcome.HOLDS
    assert compare(found, "ce", "a", "b", by=0.3).outcome is Outcome.OPPOSITE


def test_losses_are_compared_at_one_l0() -> None:
    """A loss that is a power of L0 comes out exactly, seed by seed, whatever L0 was measured."""
    l0 = {8: [7.6, 8.4], 16: [15.0, 16.5]}
    scale, power = [3.0, 4.0], [-0.4, -0.6]
    losses = {k: [s * x**p for s, p, x in zip(scale, power, l0[k], strict=True)] for k in l0}
    found = {f"a{k}": {"fvu": losses[k], "l0": l0[k]} for k in l0}
    arms = {8: "a8", 16: "a16"}
    for k in arms:
        expected = [s * k**p for s, p in zip(scale, power, strict=True)]
        assert at_equal_l0(found, "fvu", arms, k, arms) == pytest.approx(expected)
    only = {"b": {"fvu": losses[8], "l0": l0[8]}, **found}
    assert at_equal_l0(only, "fvu", {8: "b"}, 8, arms) == pytest.approx(
        [s * 8**p for s, p in zip(scale, power, strict=True)]
    )


def test_arms_of_two_coefficients_become_one_at_the_wanted_l0() -> None:
    """Losses are powers of L0, other figures linear in its logarithm; other arms stay as they are."""
    ends = {"0.1": [24.0, 20.0], "0.3": [6.0, 10.0]}
    found = {
        f"gated_c{coefficient}_k16": {
            "l0": l0,
            "fvu": [0.3 * (x / 16) ** -0.5 for x in l0],
            "dead": [40 + 10 * math.log2(x / 16) for x in l0],
            "fvu_64_kept": [0.2] if coefficient == "0.1" else [0.2, 0.2],  # one seed has so many codes
        }
        for coefficient, l0 in ends.items()
    }
    other = {"fvu": [0.1, 0.2]}
    one = between_coefficients({**found, "topk_k16": other})
    assert set(one) == {"gated_k16", "topk_k16"} and one["topk_k16"] == other
    assert "fvu_64_kept" not in one["gated_k16"]
    assert one["gated_k16"]["fvu"] == pytest.approx([0.3, 0.3])
    assert one["gated_k16"]["dead"] == pytest.approx([40.0, 40.0])
    assert one["gated_k16"]["l0"] == [16.0, 16.0] and one["gated_k16"]["measured l0"] == [22.0, 8.0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.31e-4, 2.33e-4, 2.35e-4], "2.33e-04 ± 2e-06"),
        ([0.25, 0.26, 0.27], "0.2600 ± 0.0100"),
        ([0.0, 0.0], "0.0000 ± 0.0000"),
        ([150.0, 170.0, 190.0], "170 ± 20"),
        ([0.5], "0.5000"),
    ],
)
def test_figures_are_shown_with_their_deviation(values: list[float], text: str) -> None:
    assert show(values) == text
