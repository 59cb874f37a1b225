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
from ...backends.constants import spaced
from ...backends.plain.adam import TINY
from ...backends.plain.products import matmul, part_of, total
from ...backends.sources import block_bytes, block_rows
from ...latent_shards import LatentShards
from ...pairs import Pairs
from ..base.rows import Batch, RandomStream

GRAM_ROWS = 4096  # latents whose unit rows are held in main memory at a time


class NFM(FrozenModel):
    """coefficient * ‖Ŵ Ŵᵀ‖ (Frobenius), computed as ‖Ŵᵀ Ŵ‖ of the [D, D] matrix."""

    coefficient: PositiveFloat

    def __call__(self, batch: Batch, norms: Tensor) -> None:
        """Add the term and its gradient, once per step. With G = Ŵᵀ Ŵ: d‖G‖ / dŴ = 2 Ŵ G / ‖G‖.

        Args:
            norms: those of the rows of W_dec, [F].
        """
        W_dec, shards = batch.parameters["W_dec"], batch.shards
        gram = W_dec.new_zeros(W_dec.shape[1], W_dec.shape[1])
        num_rows = max(1, latents_at_once(W_dec) // shards.unit) * shards.unit
        part_rows = part_of(len(gram))
        blocks = [slice(start, start + num_rows) for start in range(0, len(W_dec), num_rows)]
        only = unit_rows(W_dec, norms) if len(blocks) == 1 else None

        def add(rows: slice) -> None:
            for block in blocks:
                unit = unit_rows(W_dec[block], norms[block]) if only is None else only
                sums = gram[rows]
                matmul(unit.T[rows], unit, sums, add=True, part_rows=part_rows, terms=shards.unit)

        shards.chain(gram, add, part_rows)
        norm, coefficient = total(gram.square()).sqrt(), share_of(self.coefficient, batch)
        batch.outcome.add_loss("nfm", coefficient * norm.double())
        gram.mul_(2 * coefficient / norm)
        for block in blocks:
            unit = unit_rows(W_dec[block], norms[block]) if only is None else only
            d_unit = matmul(unit, gram, part_rows=shards.unit)
            d_unit.addcmul_((d_unit * unit).sum(1, keepdim=True), unit, value=-1)  # Ŵ ignores a row's length
            batch.gradients["W_dec"][block].addcdiv_(d_unit, norms[block, None])


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

    def __call__(self, batch: Batch, norms: Tensor) -> None:
        """Add the term and its gradient, once per step. If c = <ŵ_i, ŵ_j>, dc/dw_j = (ŵ_i - c ŵ_j)/|w_j|.

        Args:
            norms: those of the rows of W_dec, [F].
        """
        W_dec, num_latents = batch.parameters["W_dec"], batch.shards.total
        if self.sample is not None and self.sample < num_latents:
            shuffled = batch.random_order(RandomStream.NFM_INF, num_latents)
            latents = shuffled[: self.sample].sort().values
        else:
            latents = spaced(0, num_latents, 1, W_dec.device)
        every_norm = batch.shards.gather(norms)
        weight = share_of(self.coefficient, batch) / latents.numel()
        rows = block_rows(num_latents, W_dec.device)
        for start in range(0, latents.numel(), rows):
            block = latents[start : start + rows]
            unit = batch.shards.rows_of(W_dec, block) / every_norm[block, None]
            cosine, nearest = nearest_of_all(unit, W_dec, norms, block, batch.shards)
            batch.outcome.add_loss("nfm_inf", weight * total(cosine.double()))
            other = batch.shards.rows_of(W_dec, nearest) / every_norm[nearest, None]
            add_cosine_gradient(batch, norms, (block, unit), (nearest, other), cosine, weight)


def latents_at_once(W_dec: Tensor) -> int:
    """Latents whose unit rows are held at a time; a GPU takes many, so that it starts few kernels."""
    if W_dec.device.type == "cpu":
        return GRAM_ROWS
    return max(GRAM_ROWS, block_bytes(W_dec.device) // (W_dec.shape[1] * W_dec.element_size()))


def share_of(coefficient: float, batch: Batch) -> float:
    """The coefficient in the process with the first rows, 0 in the others: the term is of weights alone."""
    return coefficient if batch.row_group.is_first else 0.0


def row_norms(weights: Tensor) -> Tensor:
    """The norms of the rows of ``weights`` [b, D], by which one can divide: [b]."""
    norms: Tensor = torch.linalg.vector_norm(weights, dim=1)
    return norms.clamp_min_(TINY)


def unit_rows(weights: Tensor, norms: Tensor | None = None) -> Tensor:
    """``weights`` [b, D] with its rows, whose ``norms`` [b] may be given, scaled to norm 1."""
    return weights / (row_norms(weights) if norms is None else norms)[:, None]


def nearest_others(W_dec: Tensor, norms: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each of ``latents`` (int64 [b]) with another latent: cosine [b], latent [b]."""
    unit = W_dec[latents] / norms[latents, None]
    return nearest_of_all(unit, W_dec, norms, latents, LatentShards.divide(len(W_dec)))


def nearest_of_all(
    unit: Tensor, W_dec: Tensor, norms: Tensor, latents: Tensor, shards: LatentShards
) -> tuple[Tensor, Tensor]:
    """The largest cosine of each of ``latents`` (int64 [b], of all F) with another latent of any process.

    Args:
        unit: the rows of ``latents`` with norm 1, [b, D].
        W_dec, norms: this process's rows [n, D] and their norms [n].

    Returns:
        The cosines [b] and the latents [b]; ties go to the lowest.
    """
    cosines = matmul(unit, W_dec.T, columns=shards.unit)
    cosines.div_(norms)
    if shards.is_whole:
        best = cosines.scatter_(1, latents[:, None], -torch.inf).max(dim=1)
        return best.values, best.indices
    here, own = held_here(latents, shards)
    cosines[here, own] = -torch.inf
    best = cosines.max(dim=1)
    value, latent = best.values, best.indices + shards.first
    others = shards.group.gather(value), shards.group.gather(latent)
    value, latent = (every[0] for every in others)
    for other, its_latent in zip(*others, strict=True):
        better = other > value
        value, latent = torch.where(better, other, value), torch.where(better, its_latent, latent)
    return value, latent


def held_here(latents: Tensor, shards: LatentShards) -> tuple[Tensor, Tensor]:
    """Which of ``latents`` (int64 [b], of all F) this process holds: their places, and their numbers here."""
    own = latents - shards.first
    here = ((own >= 0) & (own < shards.count)).nonzero().flatten()
    return here, own[here]


def add_cosine_gradient(
    batch: Batch,
    norms: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    cosine: Tensor,
    weight: float,
) -> None:
    """gradient += weight * d (sum of cosine(w_i, w_j)) / d W_dec, for the latents of this process.

    Args:
        norms: of the rows of W_dec, [n].
        first, second: latents i and j, int64 [b], of all F, each with their rows of norm 1, [b, D].
    """
    gradient, shards = batch.gradients["W_dec"], batch.shards
    (i, unit_i), (j, unit_j) = first, second
    latents, direction = torch.cat([i, j]), unit_i.new_empty(2, *unit_i.shape)
    for unit, other, out in ((unit_i, unit_j, direction[0]), (unit_j, unit_i, direction[1])):
        torch.addcmul(other, unit, cosine[:, None], value=-1, out=out)
    if shards.is_whole:  # it need not wait for its device to say how many it holds
        row_ptr = spaced(0, len(latents) + 1, 1, latents.device)
        pairs = Pairs(row_ptr=row_ptr, latent=latents, value=norms[latents], num_latents=len(gradient))
    else:
        here, own = held_here(latents, shards)
        pairs = Pairs.from_rows(here, own, norms[own], len(latents), len(gradient))
    batch.backend.accumulate_by_latent(pairs, weight / pairs.value, direction.flatten(0, 1), gradient)
