"""How often latents should be active when their densities follow Zipf's law. "Adaptive Sparse Allocation with
Mutual Choice & Feature Choice Sparse Autoencoders", equation 4 and Algorithm 1.

Legend: B rows of a batch, F latents, k active latents per row, i rank of a latent by density, from 1.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel

GOLDEN_RATIO = 0.6180339887498949


class Zipf(FrozenModel):
    """The law m_i ~ 1 / (i + beta)^alpha, cut off at F latents and scaled to k * B matches per batch.

    The defaults are what the paper fitted on GPT-2's residual stream; it fixes alpha to 1 and reuses beta for
    other widths.
    """

    alpha: NonNegativeFloat = 1.0
    beta: Annotated[float, Field(gt=-1)] = 6.8
    max_rows: PositiveInt | None = None  # m_max; null: all rows of the batch

    def expected_rows(self, k: float, num_latents: int, num_rows: int) -> Tensor:
        """N_approx / (i + beta)^alpha with N_approx = B k / sum of the weights: float64 [F], descending.

        This is line 5 of Algorithm 1 without its floor: what a latent of rank i would match on average. The
        cap holds.
        """
        rank = torch.arange(1, num_latents + 1, dtype=torch.float64)
        weight = (rank + self.beta) ** -self.alpha
        return (weight * (k * num_rows / weight.sum())).clamp_(max=self._cap(num_rows))

    def rows(self, k: float, num_latents: int, num_rows: int) -> Tensor:
        """m of Algorithm 1, with floor and cap: int64 [F], descending; their sum is k * B without the two."""
        return self.expected_rows(k, num_latents, num_rows).floor_().long()

    def _cap(self, num_rows: int) -> int:
        """A latent cannot match more rows than there are, whatever m_max says."""
        return num_rows if self.max_rows is None else min(self.max_rows, num_rows)


class ZipfAllotment(Zipf):
    """The rows that each latent chooses in Feature Choice, by its rank.

    ``rounding: floor`` is Algorithm 1: a latent expected on less than one row a batch would never be
    active, and k * B matches are not reached. With ``carry`` what is left over is carried to the next
    batches, so that such a latent has its row every few batches (as a footnote of the paper expects) and
    the mean is k * B, where no cap binds.
    """

    rounding: Literal["floor", "carry"] = "floor"

    def rows_in_batch(self, k: float, num_latents: int, num_rows: int, number: int) -> Tensor:
        """m_i by rank, int64 [F], for the batch of that 0-based ``number``."""
        if self.rounding == "floor":
            return self.rows(k, num_latents, num_rows)
        expected = self.expected_rows(k, num_latents, num_rows)
        phase = (
            torch.arange(num_latents, dtype=torch.float64) * GOLDEN_RATIO % 1.0
        )  # not all in the same batch
        return ((expected * (number + 1) + phase).floor_() - (expected * number + phase).floor_()).long()
