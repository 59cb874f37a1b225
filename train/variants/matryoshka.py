"""Matryoshka BatchTopK: every prefix of the dictionary learns to reconstruct alone. Bussmann, Nabeshima,
Karvonen & Nanda 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders".
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from ...common.fvu import sum_of_squares
from ..pairs import Pairs
from .base.batch_rule import BatchRule
from .base.gradients import add_affine_gradient, backpropagate
from .base.rows import PART_ROWS, Batch
from .base.variant import Plan
from .losses.auxk import AuxK

Fraction = Annotated[float, Field(gt=0, le=1)]


class MatryoshkaBatchTopK(BatchRule):
    """BatchTopK over all latents, loss = sum over prefixes g of w_g |x - reconstruction from the first m_g|².

    The latents of a cross-layer transcoder are counted in turn, one of each layer after the other, so that
    a prefix has as many of every layer.

    ``prefixes`` are fractions of the dictionary. The default has the paper's 2048, 6144, 14336, 30720 and
    65536 of 65536 latents, and its weights of 1. AuxK's residual, the metrics and inference are those of the
    whole dictionary.
    """

    kind: Literal["matryoshka_batch_topk"] = "matryoshka_batch_topk"
    prefixes: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    weights: tuple[PositiveFloat, ...] | None = None  # one for each prefix; null: 1 for each
    auxk: AuxK | None = AuxK()

    @model_validator(mode="after")
    def _prefixes_ascend(self) -> Self:
        if any(a >= b for a, b in pairwise(self.prefixes)) or self.prefixes[-1] != 1:
            raise ValueError(f"prefixes must ascend and end with 1, got {list(self.prefixes)}")
        if self.weights is not None and len(self.weights) != len(self.prefixes):
            raise ValueError(f"{len(self.prefixes)} prefixes need as many weights, got {len(self.weights)}")
        return self

    def problems(self, plan: Plan) -> list[str]:
        found, widths = super().problems(plan), self.sizes(plan.num_latents)
        if widths[0] < 1 or any(a >= b for a, b in pairwise(widths)):
            found.append(
                f"prefixes of {plan.num_latents} latents would have the sizes {widths}: "
                "give fewer prefixes, or more latents"
            )
        return found

    def sizes(self, num_latents: int) -> list[int]:
        """m_g, the number of latents of each prefix, ascending to F."""
        return [round(fraction * num_latents) for fraction in self.prefixes]

    def train(self, batch: Batch, codes: Pairs) -> None:
        widths = self.sizes(batch.shards.total)
        weights = self.weights or (1.0,) * len(widths)
        for rows, part in batch.split(max(1, PART_ROWS // len(widths))):
            part_codes = codes.slice_rows(rows.start, rows.stop)
            error, squared_error = train_nested(part, part_codes, widths, weights)
            part.record(part_codes, squared_error)
            if self.auxk is not None:
                self.auxk.term(self.k)(part, error)


def train_nested(
    part: Batch, codes: Pairs, sizes: list[int], weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Add the loss of every prefix and its gradients.

    Returns:
        The error of the whole dictionary, [B, D], and the sum of its squares, float64 [].

    Ring h holds the latents of prefix h that are not in prefix h - 1. With e_g the error of prefix g and
    s_h = sum over g >= h of w_g e_g, the gradients for ring h are those of :mod:`.base.gradients` with s_h in
    the place of e: d loss / d code = 2 / R <s_h, W_dec>. The rings of G prefixes are stacked as G * B rows,
    so that each product is one call.
    """
    W_dec, num_rings = part.parameters["W_dec"], len(sizes)
    bounds = torch.tensor(sizes, device=codes.latent.device)
    place = part.layers.place_in_turn(codes.latent)
    ring, order = torch.bucketize(place, bounds, right=True).sort(stable=True)
    rows = ring * part.num_rows + codes.rows()[order]
    rings = Pairs.from_rows(
        rows, codes.latent[order], codes.value[order], num_rings * part.num_rows, codes.num_latents
    )
    errors = part.shards.decode(rings, W_dec).view(num_rings, part.num_rows, -1)
    errors[0].sub_(part.target_centered)
    for g in range(1, num_rings):
        errors[g].add_(errors[g - 1])
    squared_errors = sum_of_squares(errors)
    for size, weight, squared_error in zip(sizes, weights, squared_errors, strict=True):
        part.outcome.add_loss(f"mse_{size}", squared_error * (weight / part.step_rows))
    whole = errors[-1].clone()
    scale = 2.0 / part.step_rows
    for weight, error in zip(weights, errors, strict=True):
        error *= weight * scale
    for h in reversed(range(num_rings - 1)):
        errors[h].add_(errors[h + 1])
    summed = errors.view(rings.num_rows, -1)
    part.backend.accumulate_by_latent(rings, rings.value, summed, part.gradients["W_dec"])
    d_value = torch.empty_like(codes.value)
    d_value[order] = part.backend.sddmm(rings, summed, W_dec)
    backpropagate(part, codes, d_value)
    add_affine_gradient(part, errors[0])
    return whole, squared_errors[-1]
