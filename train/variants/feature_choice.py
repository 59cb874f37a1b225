"""Feature Choice: each latent chooses the rows that match it best.

"Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 3.1, 4.1, 4.3.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ..batch import Batch, Rows
from ..pairs import Pairs
from ..selection import select_per_latent, select_threshold
from ..step import train_selected
from ..threshold import RunningThreshold, threshold_of
from ..variant import Plan, Variant


class FeatureChoice(Variant):
    """codes = ReLU(each latent i's m_i largest pre-activations in the batch), loss = |x - reconstruction|².

    Uniform m_i = M / F with M = k * B, so that ``k`` is the mean number of active latents of a row, as for
    TopK; where M / F is no whole number, the first M mod F latents take one row more. Every latent is active
    in every batch, so none dies and there is no auxiliary loss; the batch must be so large that M >= F.
    Inference cannot see a batch: latent i is active above the running mean of its own least selected value.
    """

    kind: Literal["feature_choice"] = "feature_choice"
    k: PositiveInt = 32
    threshold: RunningThreshold = RunningThreshold()

    inference: ClassVar[str] = "threshold"

    @property
    def default_name(self) -> str:
        return f"feature_choice_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        problems = self.threshold.problems(plan.num_steps)
        if self.k >= plan.num_latents:
            chosen = self.k * plan.batch_rows / plan.num_latents
            problems.append(
                f"k={self.k} must be smaller than the number of latents, {plan.num_latents}: "
                f"each latent would have to choose {chosen:.0f} of {plan.batch_rows} rows"
            )
        if self.k * plan.batch_rows < plan.num_latents:
            problems.append(
                f"k * batch_rows = {self.k * plan.batch_rows} gives less than one row to each of "
                f"{plan.num_latents} latents: set batch_rows to {-(-plan.num_latents // self.k)} or more"
            )
        return problems

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return self.threshold.initial_state(plan.num_latents)

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return threshold_of(state)

    def forward_backward(self, batch: Batch) -> None:
        codes = self._select(batch)
        self.threshold.observe(batch.state, codes, batch.step)
        train_selected(batch, codes)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        if as_trained:
            return self._select(rows)
        return select_threshold(rows.blocks(), rows.num_rows, rows.num_latents, rows.state["threshold"])

    def _select(self, rows: Rows) -> Pairs:
        counts = uniform_counts(self.k * rows.num_rows, rows.num_latents, rows.num_rows)
        counts = counts.to(rows.x_centered.device)
        chosen = select_per_latent(rows.blocks(), rows.num_rows, rows.num_latents, counts)
        return chosen.keep(chosen.value > 0)


def uniform_counts(total: int, num_latents: int, num_rows: int) -> Tensor:
    """m_i, int64 [F]: ``total`` matches, as evenly as whole numbers allow, at most ``num_rows`` for each."""
    counts = torch.full((num_latents,), total // num_latents, dtype=torch.int64)
    counts[: total % num_latents] += 1
    return counts.clamp_(max=num_rows)
