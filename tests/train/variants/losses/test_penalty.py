"""Penalties grow linearly during the warmup."""

from types import SimpleNamespace
from typing import Any

import pytest

from saecache.train.variants.losses.penalty import L1


def at(step: int, num_steps: int = 100) -> Any:
    return SimpleNamespace(step=step, num_steps=num_steps, step_rows=8)


@pytest.mark.parametrize("warmup", [0.2, 20])
def test_the_coefficient_grows_linearly_over_the_warmup(warmup: float) -> None:
    l1 = L1(coefficient=4.0, warmup=warmup)
    weights = [l1.weight(at(step)) for step in range(100)]
    assert weights[:20] == pytest.approx([0.5 * (step + 1) / 20 for step in range(20)])
    assert weights[20:] == [0.5] * 80


def test_without_warmup_it_starts_in_full() -> None:
    assert L1(coefficient=4.0, warmup=0).weight(at(0)) == 0.5


def test_a_coefficient_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        L1(coefficient=0)


def test_a_warmup_longer_than_the_run_is_reported() -> None:
    (problem,) = L1(coefficient=4.0, warmup=101).problems(100)
    assert "warmup=101 is longer than the 100 steps" in problem
    assert L1(coefficient=4.0, warmup=100).problems(100) == []
