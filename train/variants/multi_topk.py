"""Multi-TopK: one SAE reconstructs well with the k and with the 4 k largest pre-activations of a row. Gao et
al. 2024, "Scaling and evaluating sparse autoencoders", section 5.4 (progressive recovery).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from ..latent_shards import LatentShards
from ..pairs import Pairs
from ..selection.agreement import keep_largest_per_row
from .base.gradients import backpropagate, reconstruct
from .base.rows import Batch, Rows
from .base.variant import Plan, Variant
from .losses.auxk import AuxK


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
            narrow = largest_per_row(wide, self.k, part.shards)
            wide, narrow = wide.positive(), narrow.positive()
            found = reconstruct(part, narrow)
            backpropagate(part, narrow, found.d_value, found)
            part.record(narrow, found.squared_error)
            beside = reconstruct(part, wide, weight=self.weight, name="multi_topk")
            backpropagate(part, wide, beside.d_value, beside)
            if self.auxk is not None:
                self.auxk.term(self.k)(part, found.error)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        chosen = rows.pre_activations().largest_per_row(self.k)
        return chosen.positive()


def largest_per_row(pairs: Pairs, k: int, shards: LatentShards) -> Pairs:
    """The k largest of each row's pairs; ties go to the lowest latent. All rows must have equally many."""
    if not shards.is_whole:  # the rows have equally many in all processes together
        return keep_largest_per_row(pairs, k, shards)
    values = pairs.value.view(pairs.num_rows, -1)
    order = torch.sort(values, dim=1, descending=True, stable=True).indices[:, :k]
    return pairs.keep(torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True).flatten())
