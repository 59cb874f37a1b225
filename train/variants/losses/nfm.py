"""NFM and NFM-inf penalize decoder directions that align. "Adaptive Sparse Allocation with Mutual Choice &
Feature Choice Sparse Autoencoders", appendix C.

The neural feature matrix is Ŵ Ŵᵀ [F, F], where Ŵ is W_dec with rows of norm 1. It is never formed.
Legend: D model width, F latents, b latents of a block.
"""

from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.choice import backend_of
from ...backends.plain.adam import TINY
from ...backends.plain.products import matmul, total
from ...backends.sources import block_rows
from ...pairs import Pairs
from ..base.rows import Batch, RandomStream

GRAM_ROWS = 4096  # latents whose unit rows are held in memory at a time


class NFM(FrozenModel):
    """coefficient * ‖Ŵ Ŵᵀ‖ (Frobenius), computed as ‖Ŵᵀ Ŵ‖ of the [D, D] matrix."""

    coefficient: PositiveFloat

    def __call__(self, batch: Batch) -> None:
        """Add the term and its gradient, once per step. With G = Ŵᵀ Ŵ: d‖G‖ / dŴ = 2 Ŵ G / ‖G‖."""
        W_dec = batch.parameters["W_dec"]
        gram = W_dec.new_zeros(W_dec.shape[1], W_dec.shape[1])
        for start in range(0, W_dec.shape[0], GRAM_ROWS):
            unit, _ = unit_rows(W_dec[start : start + GRAM_ROWS])
            matmul(unit.T, unit, gram, add=True)
        norm = total(gram.square()).sqrt()
        batch.outcome.add_loss("nfm", self.coefficient * norm.double())
        gram.mul_(2 * self.coefficient / norm)
        for start in range(0, W_dec.shape[0], GRAM_ROWS):
            unit, norms = unit_rows(W_dec[start : start + GRAM_ROWS])
            d_unit = matmul(unit, gram)
            d_unit.addcmul_((d_unit * unit).sum(1, keepdim=True), unit, value=-1)  # Ŵ ignores a row's length
            batch.gradients["W_dec"][start : start + GRAM_ROWS].add_(d_unit.div_(norms))


class NFMInf(FrozenModel):
    """coefficient * mean over latents i of the largest entry (i, j) of Ŵ Ŵᵀ with j ≠ i, by blocks of rows.

    The paper prints the maximum over all j; but then it is always entry (i, i) = 1, and the loss has no
    gradient. A step costs F² D multiplications, which exceeds the encoder's cost if F exceeds the rows of the
    batch. ``sample`` latents i per step estimate the mean without bias.
    """

    coefficient: PositiveFloat
    sample: PositiveInt | None = None  # number of latents i drawn in each step; null: all

    @model_validator(mode="before")
    @classmethod
    def _without_a_former_setting(cls, values: Any) -> Any:
        """Files of version 0.1 say ``include_diagonal: false``, which is what is done now."""
        if isinstance(values, dict) and values.get("include_diagonal") is False:
            return {key: value for key, value in values.items() if key != "include_diagonal"}
        return values

    def __call__(self, batch: Batch) -> None:
        """Add the term and its gradient, once per step. If c = <ŵ_i, ŵ_j>, dc/dw_j = (ŵ_i - c ŵ_j)/|w_j|."""
        W_dec, num_latents = batch.parameters["W_dec"], batch.num_latents
        latents = torch.arange(num_latents, device=W_dec.device)
        if self.sample is not None and self.sample < num_latents:
            shuffled = batch.random_order(RandomStream.NFM_INF, num_latents)
            latents = shuffled[: self.sample].sort().values
        norms = torch.linalg.vector_norm(W_dec, dim=1).clamp_min_(TINY)
        weight = self.coefficient / latents.numel()
        rows = block_rows(num_latents, W_dec.device)
        for start in range(0, latents.numel(), rows):
            block = latents[start : start + rows]
            cosine, nearest = nearest_others(W_dec, norms, block)
            batch.outcome.add_loss("nfm_inf", weight * total(cosine.double()))
            add_cosine_gradient(batch.gradients["W_dec"], W_dec, norms, block, nearest, cosine, weight)


def unit_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """``weights`` [b, D] with its rows scaled to norm 1, and the original norms [b, 1]."""
    norms = torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min_(TINY)
    return weights / norms, norms


def nearest_others(W_dec: Tensor, norms: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each of ``latents`` (int64 [b]) with another latent: cosine [b], latent [b]."""
    cosines = matmul(W_dec[latents] / norms[latents, None], W_dec.T)
    cosines.div_(norms)
    cosines[torch.arange(latents.numel(), device=latents.device), latents] = -torch.inf
    best = cosines.max(dim=1)
    return best.values, best.indices


def add_cosine_gradient(
    gradient: Tensor, W_dec: Tensor, norms: Tensor, i: Tensor, j: Tensor, cosine: Tensor, weight: float
) -> None:
    """gradient += weight * d (sum of cosine(w_i, w_j)) / d W_dec. i, j: int64 [b]; i has no repeats."""
    unit_i, unit_j, c = W_dec[i] / norms[i, None], W_dec[j] / norms[j, None], cosine[:, None]
    gradient[i] += (unit_j - c * unit_i) * (weight / norms[i, None])
    pairs = Pairs.from_rows(torch.arange(len(j), device=j.device), j, cosine, len(j), W_dec.shape[0])
    backend_of(gradient).accumulate_by_latent(pairs, weight / norms[j], unit_i - c * unit_j, gradient)
