"""The running prevalence of latents."""

from dataclasses import replace

import pytest
import torch

from saecache.train.pairs import Pairs
from saecache.train.variants.base.prevalence import (
    initial_prevalence,
    observe_prevalence,
    prevalence,
    window_seen,
)
from saecache.train.variants.base.rows import Batch, Outcome


def make_batch(step: int = 0) -> Batch:
    return Batch(
        x_centered=torch.zeros(4, 2),
        target_centered=torch.zeros(4, 2),
        parameters={},
        state=initial_prevalence(3),
        gradients={},
        outcome=Outcome.empty(3, torch.device("cpu")),
        dead=torch.zeros(3, dtype=torch.bool),
        number=step,
        num_steps=100,
        seed=0,
        step_rows=4,
    )


CODES = Pairs.from_dense(torch.tensor([[1.0, 0, 2], [1, 0, 0], [1, 0, 3], [1, 0, 0]]))
NONE = Pairs.from_dense(torch.zeros(4, 3))


def test_the_first_batch_is_the_mean_at_once() -> None:
    batch = make_batch()
    assert torch.equal(prevalence(batch.state), torch.zeros(3))
    observe_prevalence(batch, CODES, window_rows=1000)
    torch.testing.assert_close(prevalence(batch.state), torch.tensor([1.0, 0.0, 0.5]))


def test_a_window_of_rows_halves_what_came_before() -> None:
    batch = make_batch()
    for _ in range(400):
        observe_prevalence(batch, CODES, window_rows=40)
    for _ in range(10):
        observe_prevalence(batch, NONE, window_rows=40)
    torch.testing.assert_close(prevalence(batch.state), torch.tensor([0.5, 0.0, 0.25]))


@pytest.mark.parametrize(("window", "first_step"), [(40, 10), (41, 11), (None, 5)])
def test_a_window_is_seen_when_its_rows_were(window: int | None, first_step: int) -> None:
    """None is a twentieth of the run's 400 rows."""
    seen = [window_seen(replace(make_batch(), number=step), window) for step in range(20)]
    assert seen.index(True) == first_step and all(seen[first_step:])
