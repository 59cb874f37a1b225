"""TopK keeps the k largest pre-activations of each row. Gao et al. 2024."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from ..pairs import Pairs
from .base.gradients import train_selected
from .base.rows import Batch, Rows
from .base.variant import Variant
from .losses.auxk import AuxK, auxk_terms


class TopK(Variant):
    """codes = ReLU(TopK_k(W_enc (x - b_dec) + b_enc)), loss = |x - reconstruction|² + AuxK on dead latents.

    ``k = 32`` and AuxK's coefficient 1/32 are the paper's. Inference follows the same rule.
    """

    kind: Literal["topk"] = "topk"
    k: PositiveInt = 32
    auxk: AuxK | None = AuxK()

    inference: ClassVar[str] = "topk"
    shares_rows: ClassVar[bool] = True

    @property
    def default_name(self) -> str:
        return f"topk_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def forward_backward(self, batch: Batch) -> None:
        train_selected(batch, self.encode(batch), auxk_terms(self.auxk, self.k))

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        chosen = rows.pre_activations().largest_per_row(self.k)
        return chosen.positive()
