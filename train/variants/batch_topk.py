"""BatchTopK keeps the k * B largest pre-activations of a batch of B rows. Bussmann et al. 2024."""

from typing import Literal

from ..pairs import Pairs
from .base.batch_rule import BatchRule
from .base.gradients import train_selected
from .base.rows import Batch
from .losses.auxk import AuxK, auxk_terms


class BatchTopK(BatchRule):
    """codes = ReLU(the k * B largest pre-activations of the batch), loss = |x - reconstruction|² + AuxK."""

    kind: Literal["batch_topk"] = "batch_topk"
    auxk: AuxK | None = AuxK()

    def train(self, batch: Batch, codes: Pairs) -> None:
        train_selected(batch, codes, auxk_terms(self.auxk, self.k))
