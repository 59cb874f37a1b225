"""Resampling draws rows in proportion to their squared loss."""

import torch

from saecache.train.variants.losses.resampling import draw_rows


def test_rows_are_drawn_by_the_square_of_their_loss() -> None:
    loss = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    rows = draw_rows(loss, 14_000, torch.Generator().manual_seed(0))
    share = torch.bincount(rows, minlength=5) / 14_000
    torch.testing.assert_close(share, torch.tensor([0, 1, 4, 0, 9]) / 14, atol=0.02, rtol=0)
    assert not bool(share[0]) and not bool(share[3])


def test_draws_are_a_function_of_the_generator() -> None:
    loss = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, again, other = (draw_rows(loss, 50, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_enormous_losses_do_not_overflow() -> None:
    loss = torch.tensor([1e200, 1e200], dtype=torch.float64)
    assert set(draw_rows(loss, 100, torch.Generator().manual_seed(0)).tolist()) == {0, 1}
