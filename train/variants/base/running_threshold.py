"""Inference thresholds of batch-wide rules: a running mean of the least value that the rule selected.

Bussmann et al. 2024 (BatchTopK), section 3.2, has one threshold; here each latent can have its own.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...pairs import Pairs

SUM, WEIGHT = "threshold_sum", "threshold_weight"


class RunningThreshold(FrozenModel):
    """Exponential mean of the least selected value, corrected for the bias of its initial value."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start_step: NonNegativeInt = 0  # steps before this one are not averaged

    def problems(self, num_steps: int) -> list[str]:
        """The reasons why these settings are impossible in a run of ``num_steps``, and how to fix them."""
        if self.start_step >= num_steps:
            return [
                f"threshold.start_step={self.start_step} is after the last of {num_steps} steps: lower it"
            ]
        return []

    def initial_state(self, num_latents: int | None) -> dict[str, Tensor]:
        """The state before the first step, for one threshold (``None``) or one per latent."""
        shape = () if num_latents is None else (num_latents,)
        return {SUM: torch.zeros(shape), WEIGHT: torch.zeros(shape)}

    def observe(self, state: Mapping[str, Tensor], codes: Pairs, step: int, *, shared: bool = False) -> None:
        """Add the codes of a batch, all above 0; a latent that was not selected keeps its threshold.

        With ``shared`` every latent's threshold gets the least value of the whole batch.
        """
        if step < self.start_step or len(codes) == 0:
            return
        if shared or state[SUM].dim() == 0:
            least = codes.value.min().expand_as(state[SUM])
            seen = torch.ones_like(least, dtype=torch.bool)
        else:
            least = torch.full_like(state[SUM], torch.inf)
            least.scatter_reduce_(0, codes.latent, codes.value, "amin")
            seen = least.isfinite()
        weight = torch.where(seen, 1 - self.momentum, 0.0)
        state[SUM].copy_(torch.where(seen, state[SUM] + weight * (least - state[SUM]), state[SUM]))
        state[WEIGHT].add_(weight * (1 - state[WEIGHT]))


def forget_thresholds(state: Mapping[str, Tensor]) -> None:
    """Reset the running mean, because the selection rule changes."""
    state[SUM].zero_()
    state[WEIGHT].zero_()


def threshold_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``threshold`` [] or [F] for inference; infinity (never active) where nothing was ever selected."""
    weight = state[WEIGHT]
    return {"threshold": torch.where(weight > 0, state[SUM] / weight.clamp_min(1e-30), torch.inf)}
