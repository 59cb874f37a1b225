"""aux_zipf: latents that are dying, though not yet dead, reconstruct what the others left over. "Adaptive
Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 3.2 and 4.2.
"""

from functools import partial

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ..base.gradients import AuxiliaryLoss
from ..base.zipf import Zipf
from .auxk import reconstruct_leftover

LAST_SHARE = 0.25  # only the least prevalent quarter can be dying
LOW_RATIO = 0.6  # of the prevalence that Zipf's law expects at the rank


class AuxZipf(FrozenModel):
    """L_aux_zipf = coefficient / R * sum over rows |e - ê|², with e = x - reconstruction held fixed.

    ê decodes, without bias, the top ``k`` dying latents of each row after ReLU. Dead latents are dying ones
    too, as in Definition 3.1. The paper gives no coefficient and no k: these are AuxK's.
    """

    coefficient: PositiveFloat = 1 / 32
    k: PositiveInt | None = None  # null: the power of two nearest below half the width of the activations
    zipf: Zipf = Zipf()

    def term(self, dying: Tensor) -> AuxiliaryLoss:
        """The loss on a part of the rows, for the latents ``dying`` (int64 [n])."""
        return partial(
            reconstruct_leftover, latents=dying, k=self.k, coefficient=self.coefficient, name="aux_zipf"
        )

    def dying(self, prevalence: Tensor, k: float, num_rows: int) -> Tensor:
        """The dying latents by Definition 3.1, ascending: int64 [n].

        The expectation is Algorithm 1's for a batch of ``num_rows`` with ``k`` active latents per row,
        without its floor: with the floor it is 0 wherever a latent is expected less than once a batch.

        Args:
            prevalence: share of rows on which each latent is active, [F].
        """
        num_latents = prevalence.numel()
        expected = self.zipf.expected_rows(k, num_latents, num_rows).to(prevalence.device) / num_rows
        by_rank = torch.sort(prevalence, descending=True, stable=True).indices
        low = prevalence[by_rank] < LOW_RATIO * expected
        rank = torch.arange(1, num_latents + 1, device=prevalence.device)
        low &= rank > (1 - LAST_SHARE) * num_latents
        all_below_low = low.flip(0).int().cumprod(0).bool().flip(0)
        return by_rank[all_below_low].sort().values
