"""BatchTopK: the k * B largest pre-activations of a batch of B rows. Bussmann et al. 2024."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from ..batch import Batch, Rows
from ..losses.auxk import AuxK
from ..pairs import Pairs
from ..selection import select_per_batch, select_threshold
from ..step import train_selected
from ..threshold import RunningThreshold, threshold_of
from ..variant import Plan, Variant


class BatchTopK(Variant):
    """codes = ReLU(the k * B largest pre-activations of the batch), loss = |x - reconstruction|² + AuxK.

    Rows share one budget, so that hard rows use more latents than easy ones. Inference cannot see a batch: a
    latent is active above the running mean of the least selected value.
    """

    kind: Literal["batch_topk"] = "batch_topk"
    k: PositiveInt = 32
    auxk: AuxK | None = AuxK()
    threshold: RunningThreshold = RunningThreshold()

    inference: ClassVar[str] = "threshold"

    @property
    def default_name(self) -> str:
        return f"batch_topk_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        problems = self.threshold.problems(plan.num_steps)
        if self.k >= plan.num_latents:
            problems.append(f"k={self.k} must be smaller than the number of latents, {plan.num_latents}")
        return problems

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return self.threshold.initial_state(None)

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return threshold_of(state)

    def forward_backward(self, batch: Batch) -> None:
        codes = self._select(batch)
        self.threshold.observe(batch.state, codes, batch.step)
        train_selected(batch, codes, [] if self.auxk is None else [self.auxk])

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        if as_trained:
            return self._select(rows)
        return select_threshold(rows.blocks(), rows.num_rows, rows.num_latents, rows.state["threshold"])

    def _select(self, rows: Rows) -> Pairs:
        total = self.k * rows.num_rows
        chosen = select_per_batch(rows.blocks(), rows.num_rows, rows.num_latents, total)
        return chosen.keep(chosen.value > 0)
