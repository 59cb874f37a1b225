"""Feature Choice: each latent chooses the rows that match it best.

"Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 3.1, 4.1,
4.3, 4.4.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ..pairs import Pairs
from ..selection.pre_activations import HINT
from .base.batch_rule import hint_of, largest_of_batch
from .base.gradients import train_selected
from .base.mutual import MutualPhase
from .base.prevalence import prevalence
from .base.rows import Batch, Rows
from .base.running_threshold import CountedThreshold, forget_thresholds, start_thresholds, threshold_of
from .base.variant import Plan, Variant
from .base.zipf import ZipfAllotment

RANK = "rank"
MOST_BATCH_ROWS = 1 << 30  # more are no advice


class FeatureChoice(Variant):
    """codes = ReLU(each latent i's m_i largest pre-activations in the batch), loss = |x - reconstruction|².

    By default m_i = M / F with M = k * B, so that ``k`` is the mean number of active latents of a row, as in
    TopK; if F does not divide M, the first M mod F latents take one row more. Every latent is active in every
    batch, so none dies and there is no auxiliary loss; the batch must be large enough for M >= F. At
    inference latent i is active above a threshold of its own: the running mean of its least selected value,
    corrected so that the latent is as dense as in training (``threshold.counted_share``).

    With ``zipf`` m_i follows Algorithm 1, where i is the rank of the latent by prevalence. With
    ``mutual_choice`` the run begins as Mutual Choice, and the prevalence at the end of this phase sets the
    ranks for the rest. Without it no prevalence is known, and the i-th latent has rank i. In the first phase
    all latents share the batch's threshold.
    """

    kind: Literal["feature_choice"] = "feature_choice"
    k: PositiveInt = 32
    zipf: ZipfAllotment | None = None  # null: uniform
    mutual_choice: MutualPhase | None = None  # null: Feature Choice from the first step on
    threshold: CountedThreshold = CountedThreshold()

    inference: ClassVar[str] = "threshold"
    selects_alone: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True

    @property
    def default_name(self) -> str:
        law = "" if self.zipf is None else "_zipf"
        phases = "" if self.mutual_choice is None else "_after_mutual"
        return f"feature_choice{law}{phases}_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        found = self.threshold.problems(plan.num_steps)
        if self.zipf is not None:
            found += zipf_problems(self.zipf, self.k, plan)
        elif self.k * plan.batch_rows < plan.num_latents:
            found.append(
                f"k * batch_rows = {self.k * plan.batch_rows} gives less than one row to each of "
                f"{plan.num_latents} latents: set batch_rows to {-(-plan.num_latents // self.k)} or more"
            )
        if self.mutual_choice is not None:
            found += self.mutual_choice.problems(plan)
        return found

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        state = dict(self.threshold.initial_state(plan.num_latents))
        if self.zipf is not None:
            state[RANK] = torch.arange(plan.num_latents)
        if self.mutual_choice is not None:
            state |= {HINT: torch.tensor(-torch.inf), **self.mutual_choice.initial_state_of_terms(plan)}
        return state

    def start_from(self, tensors: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
        ranks = {RANK: tensors[RANK]} if self.zipf is not None and RANK in tensors else {}
        return {**start_thresholds(tensors, plan.num_latents), **ranks}

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return threshold_of(state) if self.zipf is None else {**threshold_of(state), RANK: state[RANK]}

    def forward_backward(self, batch: Batch) -> None:
        if self.mutual_choice is not None:
            switch = self.mutual_choice.phase_steps(batch.num_steps)
            if batch.step < switch:
                codes = largest_of_batch(batch, self.k, hint_of(batch))
                self.threshold.observe_batch(batch, codes, shared=True)
                self.mutual_choice.train_with_terms(batch, codes, self.k)
                return
            if batch.number == switch * batch.batches_of_step:
                forget_thresholds(batch.state)
                if self.zipf is not None:
                    every = batch.shards.gather(prevalence(batch.state))
                    batch.state[RANK].copy_(batch.shards.part(ranks(every)))
        codes = self._select(batch)
        self.threshold.observe_batch(batch, codes)
        train_selected(batch, codes)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        if as_trained:
            return self._select(rows)
        return rows.pre_activations().above(rows.state["threshold"])

    def _select(self, rows: Rows) -> Pairs:
        chosen = rows.pre_activations().largest_per_latent(self._counts(rows))
        return chosen.positive()

    def _counts(self, rows: Rows) -> Tensor:
        """m_i of each latent for ``rows``, int64 [F], on their device."""
        num_rows, device = rows.num_rows_of_all, rows.x_centered.device
        if self.zipf is None:
            counts = _uniform_on_device(self.k * num_rows, rows.shards.total, num_rows, device)
            return rows.shards.part(counts)
        number = rows.number if self.zipf.rounding == "carry" else 0  # else all batches have the same
        by_rank = _by_rank_on_device(self.zipf, self.k, rows.shards.total, num_rows, number, device)
        return by_rank[rows.state[RANK]]


@lru_cache(maxsize=4)  # every step asks again: on a GPU it would have to be copied each time
def _uniform_on_device(total: int, num_latents: int, num_rows: int, device: torch.device) -> Tensor:
    return uniform_counts(total, num_latents, num_rows).to(device)


@lru_cache(maxsize=4)
def _by_rank_on_device(
    zipf: ZipfAllotment, k: int, num_latents: int, num_rows: int, number: int, device: torch.device
) -> Tensor:
    return zipf.rows_in_batch(k, num_latents, num_rows, number).to(device)


def uniform_counts(total: int, num_latents: int, num_rows: int) -> Tensor:
    """Share ``total`` matches evenly among the latents, at most ``num_rows`` for each: m_i, int64 [F]."""
    counts = torch.full((num_latents,), total // num_latents, dtype=torch.int64)
    counts[: total % num_latents] += 1
    return counts.clamp_(max=num_rows)


def ranks(density: Tensor) -> Tensor:
    """The 0-based rank of each latent by descending density, int64 [F]; ties go to the lowest latent."""
    order = torch.sort(density, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))


def zipf_problems(zipf: ZipfAllotment, k: int, plan: Plan) -> list[str]:
    """The reasons why Zipf's m_i are impossible under this plan, and how to fix them."""
    found = []
    if zipf.max_rows is not None and zipf.max_rows > plan.batch_rows:
        found.append(
            f"zipf.max_rows={zipf.max_rows} is more than the {plan.batch_rows} rows of a batch: "
            "raise batch_rows, or set max_rows to null"
        )
    empty = int((zipf.rows(k, plan.num_latents, plan.batch_rows) == 0).sum())
    if zipf.rounding == "floor" and empty:
        fewest = float(zipf.expected_rows(k, plan.num_latents, plan.batch_rows)[-1])
        fix = "set zipf.alpha to less"
        if fewest * MOST_BATCH_ROWS >= plan.batch_rows:
            fix = f"set batch_rows to {-(-plan.batch_rows // fewest):.0f} or more"
        found.append(
            f"zipf: the last {empty} of {plan.num_latents} latents would get no row of a batch of "
            f"{plan.batch_rows}: {fix}, or zipf.rounding to carry"
        )
    return found
