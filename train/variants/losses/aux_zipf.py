"""aux_zipf: latents that are dying learn to reconstruct what the others leave over. "Adaptive Sparse
Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 3.2 and 4.2.
"""

from functools import lru_cache, partial

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.constants import spaced
from ..base.gradients import AuxiliaryLoss
from ..base.rows import Batch
from ..base.zipf import Zipf
from .auxk import reconstruct_leftover

LAST_SHARE = 0.25  # only the least prevalent quarter of the latents can be dying
LOW_RATIO = 0.6  # a dying latent is below this share of the prevalence that Zipf's law expects at its rank


class AuxZipf(FrozenModel):
    """L_aux_zipf = coefficient / R * sum over rows |e - ê|², with e = x - reconstruction held fixed.

    ê decodes, without bias, the top ``k`` dying latents of each row after ReLU. By Definition 3.1 dead
    latents are dying ones too; section 2.5 says that they are not dead yet, which is what
    ``without_dead`` does. The paper gives neither coefficient nor k; the defaults are AuxK's.
    """

    coefficient: PositiveFloat = 1 / 32
    k: PositiveInt | None = None  # null: as in AuxK
    zipf: Zipf = Zipf()
    without_dead: bool = False  # leaves dead latents, which AuxK trains, out of the dying ones

    def term(self, latents: Tensor, codes_per_row: int) -> AuxiliaryLoss:
        """The loss as a function of a part of the rows, for dying ``latents`` (int64 [n])."""
        return partial(self._add, latents=latents, codes_per_row=codes_per_row)

    def _add(self, part: Batch, error: Tensor, *, latents: Tensor, codes_per_row: int) -> None:
        k = self.k, codes_per_row
        reconstruct_leftover(part, error, latents, k=k, coefficient=self.coefficient, name="aux_zipf")

    def dying(self, prevalence: Tensor, k: float, num_rows: int) -> Tensor:
        """Find the dying latents by Definition 3.1: int64 [n], ascending.

        The expected prevalence is Algorithm 1's for a batch of ``num_rows`` with ``k`` active latents per
        row, but without its floor, which gives 0 for latents expected less than once per batch.

        Args:
            prevalence: share of rows on which each latent is active, [F].
        """
        num_latents = prevalence.numel()
        expected = _expected_prevalence(self.zipf, k, num_latents, num_rows, prevalence.device)
        return dying_latents(prevalence, expected)


def dying_latents(prevalence: Tensor, expected: Tensor) -> Tensor:
    """Find the dying latents by Definition 3.1: int64 [n], ascending.

    Args:
        prevalence: share of rows on which each latent is active, [F].
        expected: the prevalence that Zipf's law expects at each rank, [F], the densest first.
    """
    first = int((1 - LAST_SHARE) * prevalence.numel())  # the ranks before cannot be dying
    densest = torch.sort(prevalence, descending=True, stable=True)
    dense = densest.values[first:] >= LOW_RATIO * expected[first:]
    last = densest.indices[first:]
    all_below_low = int((dense * spaced(1, len(last) + 1, 1, last.device)).max()) if len(last) else 0
    return last[all_below_low:].sort().values


@lru_cache(maxsize=8)  # every step asks again: on a GPU it would have to be copied each time
def _expected_prevalence(
    zipf: Zipf, k: float, num_latents: int, num_rows: int, device: torch.device
) -> Tensor:
    """The prevalence that Zipf's law expects at each rank: float64 [F]."""
    return zipf.expected_rows(k, num_latents, num_rows).to(device) / num_rows
