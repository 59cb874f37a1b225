"""What the page of the papers' claims says about two variants follows from their figures over the seeds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "papers"))
from verdicts import alike, compared

FEW, MORE, MANY = [1.0, 1.1, 0.9], [1.3, 1.0, 1.6], [3.0, 3.1, 2.9]


@pytest.mark.parametrize(
    ("lower", "higher", "verdict"),
    [
        (FEW, MANY, "**comes out here** (dead 1 of a, 3 of b)"),
        (MANY, FEW, "**the opposite comes out here**"),
        (FEW, MORE, "**no difference here**"),
        ([0.0, 0.0, 10.0], [20.0, 20.0, 9.0], "**no difference here**"),  # the third seed says the opposite
        ([5.0] * 3, [5.0] * 3, "**cannot be told here** (dead 5 in every run of both)"),
    ],
)
def test_a_difference_is_beyond_both_deviations_and_of_one_sign(
    lower: list[float], higher: list[float], verdict: str
) -> None:
    text = compared({"a": {"dead": lower}, "b": {"dead": higher}}, "a has fewer", "dead", "a", "b")
    assert text.startswith("a has fewer: " + verdict)


def test_a_claim_that_nothing_changes() -> None:
    for other, verdict in ((MORE, "**comes out here**"), (MANY, "**the opposite comes out here**")):
        text = alike({"a": {"mse": FEW}, "b": {"mse": other}}, "It does not matter", "mse", "a", "b")
        assert text.startswith("It does not matter: " + verdict)
