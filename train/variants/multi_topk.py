"""Multi-TopK: one SAE reconstructs well with the k and with the 4 k largest pre-activations of a row. Gao et
al. 2024, "Scaling and evaluating sparse autoencoders", section 5.4 (progressive recovery).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from ..latent_shards import LatentShards
from ..pairs import Pairs
from ..selection.agreement import keep_largest_per_row
from .base.gradients import backpropagate, reconstruct
from .base.nested import Rings, train_nested
from .base.rows import Batch, Rows
from .base.variant import Plan, Variant
from .losses.auxk import AuxK, auxk_terms


class MultiTopK(Variant):
    """loss = L(k) + weight * L(multiple * k) + AuxK, with L(n) = |x - reconstruction from ReLU(TopK_n)|².

    The defaults give the paper's L(k) + L(4k) / 8. AuxK's residual, the metrics and inference are those of k.
    """

    kind: Literal["multi_topk"] = "multi_topk"
    k: PositiveInt = 32
    multiple: int = Field(default=4, ge=2)
    weight: PositiveFloat = 1 / 8
    auxk: AuxK | None = AuxK()

    inference: ClassVar[str] = "topk"
    shares_rows: ClassVar[bool] = True

    @property
    def default_name(self) -> str:
        return f"multi_topk_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        if self.multiple * self.k >= plan.num_latents:
            return [
                f"multiple * k = {self.multiple * self.k} must be smaller than the number of latents, "
                f"{plan.num_latents}: lower k or multiple"
            ]
        return []

    def forward_backward(self, batch: Batch) -> None:
        for _, part in batch.split():
            wide = part.pre_activations().largest_per_row(self.multiple * self.k)
            together = part.backend.nests and part.shards.is_whole and part.layers.num_layers == 1
            error = self._train_together(part, wide) if together else self._train_apart(part, wide)
            for add in auxk_terms(self.auxk, self.k):
                add(part, error)

    def _train_apart(self, part: Batch, wide: Pairs) -> Tensor:
        """Train on the codes of k and of multiple * k, one after the other; return the error of k, [B, D]."""
        narrow = largest_per_row(wide, self.k, part.shards)
        wide, narrow = wide.positive(), narrow.positive()
        found = reconstruct(part, narrow)
        backpropagate(part, narrow, found.d_value, found)
        part.record(narrow, found.squared_error)
        beside = reconstruct(part, wide, weight=self.weight, name="multi_topk")
        backpropagate(part, wide, beside.d_value, beside)
        return found.error

    def _train_together(self, part: Batch, wide: Pairs) -> Tensor:
        """The same, going along the pairs of k once less; only rounding differs."""
        codes, mask = wide.positive(), among_largest_per_row(wide, self.k)
        if codes is not wide:
            mask = wide.with_value(mask.float()).keep(wide.value > 0, len(codes)).value > 0
        rings = Rings.divide(codes, (~mask).long(), 2, ascending=False)
        weights = (1.0, self.weight)
        found = train_nested(part, codes, rings, weights, ("mse", "multi_topk"))
        part.record(codes.keep(mask), found.squared[0])
        return (found.slopes[:, 0] - found.slopes[:, 1]).mul_(part.step_rows / 2.0)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        chosen = rows.pre_activations().largest_per_row(self.k)
        return chosen.positive()


def largest_per_row(pairs: Pairs, k: int, shards: LatentShards) -> Pairs:
    """The k largest of each row's pairs; ties go to the lowest latent. All rows must have equally many."""
    if not shards.is_whole:  # the rows have equally many in all processes together
        return keep_largest_per_row(pairs, k, shards)
    return pairs.keep(among_largest_per_row(pairs, k))


def among_largest_per_row(pairs: Pairs, k: int) -> Tensor:
    """Which pairs are among the k largest of their row; all rows must have equally many: bool [P]."""
    values = pairs.value.view(pairs.num_rows, -1)
    order = torch.sort(values, dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True).flatten()
