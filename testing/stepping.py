"""A whole step of a trainee, for tests that check its effects."""

import torch
from torch import Tensor

from saecache.train.engine.trainee import Trainee


@torch.no_grad()
def take_step(
    trainee: Trainee, x_centered: Tensor, step: int, rate_factor: float, dead_after_rows: int
) -> None:
    """Train for a step of one batch [R, D]."""
    trainee.add_batch(x_centered, x_centered, step, dead_after_rows)
    trainee.update(rate_factor)
