"""Thresholds for inference, for rules that look at a whole batch: a running mean of the least selected value.

Bussmann et al. 2024 (BatchTopK), section 3.2, for one threshold; here also one for each latent.
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
    """Exponential mean of the least value that the batch rule selected, free of the bias of its start."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start_step: NonNegativeInt = 0  # steps before this one are not averaged

    def problems(self, num_steps: int) -> list[str]:
        """What is impossible about these settings in a run of ``num_steps``."""
        if self.start_step >= num_steps:
            return [f"threshold.start_step={self.start_step} is after the last of {num_steps} steps"]
        return []

    def initial_state(self, num_latents: int | None) -> dict[str, Tensor]:
        """For one threshold (``None``), or for one per latent."""
        shape = () if num_latents is None else (num_latents,)
        return {SUM: torch.zeros(shape), WEIGHT: torch.zeros(shape)}

    def observe(self, state: Mapping[str, Tensor], codes: Pairs, step: int, *, shared: bool = False) -> None:
        """Take in the codes of a batch, all above 0; a latent that was not selected keeps its threshold.

        ``shared`` gives the least value of the whole batch to every latent's threshold.
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
    """Start anew, as a new rule of selection does."""
    state[SUM].zero_()
    state[WEIGHT].zero_()


def threshold_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``threshold`` [] or [F] for inference; infinite (never active) where nothing was ever selected."""
    weight = state[WEIGHT]
    return {"threshold": torch.where(weight > 0, state[SUM] / weight.clamp_min(1e-30), torch.inf)}
