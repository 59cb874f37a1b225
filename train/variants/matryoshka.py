"""Matryoshka BatchTopK: every prefix of the dictionary learns to reconstruct alone. Bussmann, Nabeshima,
Karvonen & Nanda 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders".
"""

from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from ..pairs import Pairs
from .base import products
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
        on_cpu = batch.x_centered.device.type == "cpu"  # a GPU has room for the errors of all prefixes
        for rows, part in batch.split(max(1, PART_ROWS // len(widths)) if on_cpu else PART_ROWS):
            error = train_nested(part, codes.slice_rows(rows.start, rows.stop), widths, weights)
            if self.auxk is not None:
                self.auxk.term(self.k)(part, error)


def train_nested(part: Batch, codes: Pairs, sizes: list[int], weights: tuple[float, ...]) -> Tensor:
    """Add the loss of every prefix and its gradients, and record the codes.

    Returns the error of the whole dictionary, [B, D].

    Ring h holds the latents of prefix h that are not in prefix h - 1. With e_g the error of prefix g and
    s_h = sum over g >= h of w_g e_g, the gradients for ring h are those of :mod:`.base.gradients` with s_h in
    the place of e: d loss / d code = 2 / R <s_h, W_dec>.
    """
    rings, order = rings_of(part, codes, sizes)
    W_dec, gradients, R = part.parameters["W_dec"], part.gradients, part.step_rows
    whole, slopes, d_value, squared_errors = products.reconstruct_nested(
        rings, W_dec, part.target_centered, weights, 2.0 / R, part.shards
    )
    for size, weight, squared_error in zip(sizes, weights, squared_errors, strict=True):
        part.outcome.add_loss(f"mse_{size}", squared_error * (weight / R))
    if order is None:
        outputs = gradients["W_enc"], gradients["W_dec"]
        per_latent = products.weight_gradients(
            rings, d_value, part.x_centered, slopes, 1.0, *outputs, part.shards
        )
        part.outcome.through_encoder.add_(per_latent)
        gradients["b_enc"].add_(per_latent)
    else:
        part.backend.accumulate_by_latent(rings, rings.value, slopes, gradients["W_dec"])
        backpropagate(part, codes, torch.empty_like(d_value).index_copy_(0, order, d_value))
    add_affine_gradient(part, slopes.view(part.num_rows, len(sizes), slopes.shape[1])[:, 0])
    part.record(rings, squared_errors[-1])
    return whole


def rings_of(part: Batch, codes: Pairs, sizes: list[int]) -> tuple[Pairs, Tensor | None]:
    """The codes [B, n] as rings [B * G, n]: row b * G + h has those of row b in ring h.

    Also returns the place of each pair among the codes, int64 [P]; None if it is the same. The latents of a
    cross-layer transcoder do not ascend with the rings.
    """
    place = part.layers.place_in_turn(codes.latent)
    ring = torch.bucketize(place, _on_device(tuple(sizes), place.device), right=True)
    row = codes.rows() * len(sizes) + ring
    latent, value, order = codes.latent, codes.value, None
    if part.layers.num_layers > 1:
        row, order = row.sort(stable=True)
        latent, value = latent[order], value[order]
    row_ptr = torch.searchsorted(row, torch.arange(part.num_rows * len(sizes) + 1, device=row.device))
    return Pairs(row_ptr=row_ptr, latent=latent, value=value, num_latents=codes.num_latents), order


@lru_cache(maxsize=8)  # every step asks again: on a GPU it would have to be copied each time
def _on_device(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sizes, device=device)
