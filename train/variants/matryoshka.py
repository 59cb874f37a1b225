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
from .base.batch_rule import BatchRule
from .base.nested import Rings, train_nested
from .base.rows import PART_ROWS, Batch
from .base.variant import Plan
from .losses.auxk import AuxK, auxk_terms

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
            some = codes.slice_rows(rows.start, rows.stop)
            rings = rings_of(part, some, widths)
            found = train_nested(part, some, rings, weights, [f"mse_{size}" for size in widths])
            part.record(rings.pairs, found.squared[-1])
            for add in auxk_terms(self.auxk, self.k):
                add(part, found.last)


def rings_of(part: Batch, codes: Pairs, sizes: list[int]) -> Rings:
    """The codes by the smallest prefix that has their latent.

    The latents of a cross-layer transcoder do not ascend with the rings.
    """
    place = part.layers.place_in_turn(codes.latent)
    ring = torch.bucketize(place, _on_device(tuple(sizes), place.device), right=True)
    return Rings.divide(codes, ring, len(sizes), ascending=part.layers.num_layers == 1)


@lru_cache(maxsize=8)  # every step asks again: on a GPU it would have to be copied each time
def _on_device(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(sizes, device=device)
