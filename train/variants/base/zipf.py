"""How often each latent is active if their densities follow Zipf's law. "Adaptive Sparse Allocation with
Mutual Choice & Feature Choice Sparse Autoencoders", equation 4 and Algorithm 1.

Legend: B rows of a batch, F latents, k active latents per row, i rank of a latent by density, from 1.
"""

from math import log10
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from ....common.frozen import FrozenModel

GOLDEN_RATIO = 0.6180339887498949
MOST_DECADES = 100  # of the first weight, up or down: sums and quotients stay far from float64's ends


class Zipf(FrozenModel):
    """The law m_i ~ 1 / (i + beta)^alpha for F latents, scaled to k * B matches per batch.

    The paper fitted the defaults on GPT-2's residual stream; it fixes alpha to 1 and uses the same beta for
    other widths.
    """

    alpha: NonNegativeFloat = 1.0
    beta: Annotated[float, Field(gt=-1)] = 6.8
    max_rows: PositiveInt | None = None  # m_max; null: all rows of the batch

    @model_validator(mode="after")
    def _weighs_every_latent(self) -> Self:
        """Refuse a law under which even the weight of rank 1 is beyond what float64 can add and divide by."""
        logarithm = -self.alpha * log10(1 + self.beta)
        if not -MOST_DECADES <= logarithm <= MOST_DECADES:
            raise ValueError(
                f"alpha={self.alpha:g} and beta={self.beta:g} give the first latent the weight "
                f"(1 + beta)^-alpha = 10^{logarithm:.3g}, beyond 10^±{MOST_DECADES}: take a smaller "
                "alpha, or a beta nearer to 0"
            )
        return self

    def expected_rows(self, k: float, num_latents: int, num_rows: int) -> Tensor:
        """N_approx / (i + beta)^alpha with N_approx = B k / sum of the weights: float64 [F], descending.

        This is line 5 of Algorithm 1 without its floor: the mean number of rows that a latent of rank i
        would match. It is capped at m_max.
        """
        rank = torch.arange(1, num_latents + 1, dtype=torch.float64)
        weight = (rank + self.beta) ** -self.alpha
        return (weight * (k * num_rows / weight.sum())).clamp_(max=self._cap(num_rows))

    def rows(self, k: float, num_latents: int, num_rows: int) -> Tensor:
        """m of Algorithm 1: int64 [F], descending. Without floor and cap the sum would be k * B."""
        return self.expected_rows(k, num_latents, num_rows).floor_().long()

    def _cap(self, num_rows: int) -> int:
        """A latent cannot match more rows than there are, whatever m_max says."""
        return num_rows if self.max_rows is None else min(self.max_rows, num_rows)


class ZipfAllotment(Zipf):
    """The number of rows that each latent chooses in Feature Choice, by its rank.

    ``rounding: floor`` is Algorithm 1: a latent expected on less than one row per batch is never active, and
    there are fewer than k * B matches. ``carry`` carries fractions over to the next batches: such a latent
    gets a row every few batches, as a footnote of the paper expects, and the mean is k * B unless capped.
    """

    rounding: Literal["floor", "carry"] = "floor"

    def rows_in_batch(self, k: float, num_latents: int, num_rows: int, number: int) -> Tensor:
        """m_i by rank, int64 [F], for the 0-based batch ``number`` of the run."""
        if self.rounding == "floor":
            return self.rows(k, num_latents, num_rows)
        expected = self.expected_rows(k, num_latents, num_rows)
        # Different phases spread the carried rows of different latents over the batches.
        phase = torch.arange(num_latents, dtype=torch.float64) * GOLDEN_RATIO % 1.0
        return ((expected * (number + 1) + phase).floor_() - (expected * number + phase).floor_()).long()
