"""One whole step of a trainee, for tests that look at what a step does."""

import torch
from torch import Tensor

from saecache.train.engine.trainee import Trainee


@torch.no_grad()
def take_step(
    trainee: Trainee, x_centered: Tensor, step: int, rate_factor: float, dead_after_rows: int
) -> None:
    """Train on one batch [R, D] that is a step of its own."""
    trainee.add_batch(x_centered, x_centered, step, dead_after_rows)
    trainee.update(rate_factor)
