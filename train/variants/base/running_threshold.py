"""Inference thresholds of batch-wide rules: a running mean of the least value that the rule selected.

Bussmann et al. 2024 (BatchTopK), section 3.2, has one threshold; here each latent can have its own.

Where a latent selects few rows of a batch, the mean of its least values is a biased threshold: their
distribution is skewed, so that the share of rows above their mean is not the mean share (for one row of a
batch and exponential tails it is 0.56 of it). With ``counted_share`` two factors correct that, one for all
latents together and one for each. Some rows of every fourth batch are encoded with the thresholds so far,
and the factors rise or fall until as many rows are active as the rule selected. They settle where both counts
have the same mean, whatever the tails look like (Robbins & Monro 1951).
"""

from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.constants import one
from ...latent_shards import LatentShards
from ...pairs import Pairs
from ...selection.agreement import Sharers
from .rows import Batch

SUM, WEIGHT = "threshold_sum", "threshold_weight"
COMMON, OWN = "threshold_log_factor", "threshold_log_factors"  # logarithms of the factors
SELECTED, BATCHES = "threshold_selected", "threshold_batches"
COUNT_EVERY = 4  # batches; then of four times as many rows: it costs as much, in a quarter of the operations
OWN_RATE = 0.005  # of a latent's correction, for a count that is off by one row or by all that were expected
COMMON_RATE = 5e-5  # for each row expected: the fewer there are, the noisier is their number
MOST_COMMON_RATE, FIRST_COMMON_RATE = 0.005, 0.3

Share = Annotated[float, Field(gt=0, le=1 / COUNT_EVERY)]  # at most all rows of the batches that are counted


class RunningThreshold(FrozenModel):
    """Exponential mean of the least selected value, corrected for the bias of its initial value."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start_step: NonNegativeInt = 0  # steps before this one are not averaged
    counted_share: Share | None = None  # of all rows; null: no correction

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
        state = {SUM: torch.zeros(shape), WEIGHT: torch.zeros(shape)}
        if self.counted_share is not None:
            state |= {OWN: torch.zeros(shape), SELECTED: torch.zeros(shape)}
            state |= {COMMON: torch.zeros(()), BATCHES: torch.zeros(())}
        return state

    def observe_batch(self, batch: Batch, codes: Pairs, *, shared: bool = False) -> None:
        """Correct the thresholds by counting, then :meth:`observe` the codes of a whole batch."""
        counting = self.counted_share is not None and batch.number % COUNT_EVERY == 0
        if counting and batch.step >= self.start_step:
            self._count(batch, codes, shared)
        sharers = Sharers(batch.shards, batch.row_group)
        self.observe(batch.state, codes, batch.step, shared=shared, sharers=sharers)

    def _count(self, batch: Batch, codes: Pairs, shared: bool) -> None:
        """Correct the factors by rows of a batch that the thresholds have not seen."""
        assert self.counted_share is not None
        state = batch.state
        all_rows, over_rows = batch.num_rows_of_all, batch.row_group.sum
        num_rows = ceil(COUNT_EVERY * self.counted_share * all_rows)
        threshold = threshold_of(state)["threshold"]
        part = batch.leading_rows(num_rows)
        above = part.pre_activations().above(threshold.expand(batch.num_latents))
        active = over_rows(above.count_per_latent()).float()
        selected = over_rows(codes.count_per_latent()).float().mul_(num_rows / all_rows)
        if threshold.dim() == 0:
            active, selected = (batch.shards.gather(each).sum() for each in (active, selected))
        known = threshold.isfinite()  # the others were never selected, and are not active
        surplus = (active - selected).where(known, 0)
        state[BATCHES].add_(1)
        newest = (1 / state[BATCHES]).clamp_min(min(1.0, COUNT_EVERY * (1 - self.momentum)))
        state[SELECTED].lerp_(selected, newest)
        over_all = partial(_sum, shards=batch.shards)
        expected = over_all(state[SELECTED].where(known, 0))
        rate = torch.maximum(
            (COMMON_RATE * expected).clamp_max(MOST_COMMON_RATE), FIRST_COMMON_RATE / state[BATCHES]
        )
        state[COMMON].add_(rate * over_all(surplus) / expected.clamp_min(1))
        if not shared and threshold.dim():
            state[OWN].add_(OWN_RATE * surplus / state[SELECTED].clamp_min(1))

    def observe(
        self,
        state: Mapping[str, Tensor],
        codes: Pairs,
        step: int,
        *,
        shared: bool = False,
        sharers: Sharers | None = None,
    ) -> None:
        """Add the codes of a batch, all above 0; a latent that was not selected keeps its threshold.

        With ``shared`` every latent's threshold gets the least value of the whole batch. ``sharers`` has the
        way to the processes that hold the codes of other latents and rows.
        """
        alone = sharers is None or sharers.is_alone
        if step < self.start_step or (alone and len(codes) == 0):
            return
        if shared or state[SUM].dim() == 0:
            least = _least(codes.value)
            if sharers is not None:
                least = sharers.row_group.least(sharers.shards.group.least(least))
            if not alone and not bool(least.isfinite()):
                return
            means = [state[SUM], state[WEIGHT]]
            torch._foreach_lerp_(means, [least, one(least.device)], 1 - self.momentum)
            return
        least = torch.full_like(state[SUM], torch.inf)
        least.scatter_reduce_(0, codes.latent, codes.value, "amin")
        least = least if sharers is None else sharers.row_group.least(least)
        seen = least.isfinite()
        weight = torch.where(seen, 1 - self.momentum, 0.0)
        state[SUM].copy_(torch.where(seen, state[SUM] + weight * (least - state[SUM]), state[SUM]))
        state[WEIGHT].add_(weight * (1 - state[WEIGHT]))


class CountedThreshold(RunningThreshold):
    """A running threshold that is corrected by counting unless ``counted_share`` is null."""

    counted_share: Share | None = 1 / 16


def start_thresholds(tensors: Mapping[str, Tensor], num_latents: int | None) -> dict[str, Tensor]:
    """The state of a running mean that begins at the ``threshold`` of a trained SAE.

    Args:
        num_latents: F for a threshold for each latent; None for one, which cannot begin at several.
    """
    threshold = tensors.get("threshold")
    if threshold is None or (num_latents is None and threshold.dim()):
        return {}
    start = threshold if num_latents is None else threshold.expand(num_latents)
    known = start.isfinite()  # the others were never active
    return {SUM: torch.where(known, start, 0.0), WEIGHT: known.to(start.dtype)}


def _least(values: Tensor) -> Tensor:
    """The least of ``values`` [P], infinity if there is none: []."""
    return values.min() if len(values) else values.new_tensor(torch.inf)


def _sum(numbers: Tensor, shards: LatentShards) -> Tensor:
    """The sum over all latents, whoever holds them, or the number that all latents share: []."""
    return shards.gather(numbers).sum() if numbers.dim() else numbers


def forget_thresholds(state: Mapping[str, Tensor]) -> None:
    """Reset the running mean, because the selection rule changes."""
    for name in (SUM, WEIGHT, COMMON, OWN, SELECTED, BATCHES):
        if name in state:
            state[name].zero_()


def threshold_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``threshold`` [] or [F] for inference; infinity (never active) where nothing was ever selected."""
    weight = state[WEIGHT]
    mean = state[SUM] / weight.clamp_min(1e-30)
    if OWN in state:
        mean = mean * (state[COMMON] + state[OWN]).exp()
    return {"threshold": torch.where(weight > 0, mean, torch.inf)}
