"""Resampling draws rows in proportion to their squared loss."""

import torch

from saecache.train.backends.plain.random_numbers import random_uniform
from saecache.train.variants.losses.resampling import draw_rows


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return random_uniform(seed, 0, 0, 2, count, "cpu")


def test_rows_are_drawn_by_the_square_of_their_loss() -> None:
    loss = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    rows = draw_rows(loss, uniform(14_000))
    share = torch.bincount(rows, minlength=5) / 14_000
    torch.testing.assert_close(share, torch.tensor([0, 1, 4, 0, 9]) / 14, atol=0.02, rtol=0)
    assert not bool(share[0]) and not bool(share[3])


def test_draws_are_a_function_of_the_random_numbers() -> None:
    loss = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, again, other = (draw_rows(loss, uniform(50, seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_draws_are_finer_than_one_random_number() -> None:
    """A row of a quarter of 2⁻²³ is drawn by a quarter of the numbers that fall into the first such part."""
    loss = torch.tensor([1.0, 2.0**25 - 1], dtype=torch.float64).sqrt()
    leading, following = torch.full((64,), 2.0**-24), (torch.arange(64) + 0.5) / 64
    rows = draw_rows(loss, torch.stack([leading, following]))
    assert rows.tolist() == [0] * 16 + [1] * 48


def test_enormous_losses_do_not_overflow() -> None:
    loss = torch.tensor([1e200, 1e200], dtype=torch.float64)
    assert set(draw_rows(loss, uniform(100)).tolist()) == {0, 1}
