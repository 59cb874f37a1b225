"""Running thresholds are corrected for their initial value, for one threshold or one per latent."""

import pytest
import torch

from saecache.train.pairs import Pairs
from saecache.train.variants.base.running_threshold import RunningThreshold, threshold_of


def codes(rows: list[list[float]]) -> Pairs:
    return Pairs.from_dense(torch.tensor(rows))


def test_one_threshold_is_an_exponential_mean() -> None:
    rule = RunningThreshold(momentum=0.5)
    state = rule.initial_state(None)
    assert threshold_of(state)["threshold"] == torch.inf
    for step, least in enumerate([1.0, 3.0, 3.0]):
        rule.observe(state, codes([[least, 9.0], [0.0, 8.0]]), step)
    weights = torch.tensor([0.125, 0.25, 0.5])
    wanted = float((weights * torch.tensor([1.0, 3.0, 3.0])).sum() / weights.sum())
    assert float(threshold_of(state)["threshold"]) == pytest.approx(wanted)


def test_latents_that_were_not_selected_keep_theirs() -> None:
    rule = RunningThreshold(momentum=0.9)
    state = rule.initial_state(3)
    rule.observe(state, codes([[1.0, 0.0, 0.0], [2.0, 5.0, 0.0]]), 0)
    rule.observe(state, codes([[0.0, 7.0, 0.0], [0.0, 6.0, 0.0]]), 1)
    threshold = threshold_of(state)["threshold"]
    assert float(threshold[0]) == pytest.approx(1.0)
    assert float(threshold[1]) == pytest.approx((0.9 * 5 + 6) / 1.9)
    assert threshold[2] == torch.inf


def test_early_steps_can_be_left_out_and_empty_batches_change_nothing() -> None:
    rule = RunningThreshold(momentum=0.9, start_step=2)
    state = rule.initial_state(None)
    rule.observe(state, codes([[1.0]]), 1)
    assert threshold_of(state)["threshold"] == torch.inf
    rule.observe(state, codes([[0.0]]), 2)
    assert threshold_of(state)["threshold"] == torch.inf
    rule.observe(state, codes([[4.0]]), 2)
    assert float(threshold_of(state)["threshold"]) == pytest.approx(4.0)
