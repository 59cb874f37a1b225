"""The base of BatchTopK, Mutual Choice, Sampled-SAE and Matryoshka: k * B codes for the B rows of a batch."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from ...pairs import Pairs
from ...selection.pre_activations import HINT
from .rows import Batch, Rows
from .running_threshold import RunningThreshold, start_thresholds, threshold_of
from .variant import Plan, Variant


class BatchRule(Variant):
    """codes = ReLU(the k * B largest pre-activations of the batch); subclasses define the loss.

    The rows share one budget, so hard rows use more latents than easy ones. At inference there is no batch: a
    latent is active above a threshold, the running mean of the least selected value.
    """

    k: PositiveInt = 32
    threshold: RunningThreshold = RunningThreshold()

    inference: ClassVar[str] = "threshold"
    shares_rows: ClassVar[bool] = True

    @abstractmethod
    def train(self, batch: Batch, codes: Pairs) -> None:
        """Add the losses and gradients of the selected ``codes`` (values above 0 only) to ``batch``."""

    @property
    def default_name(self) -> str:
        kind: str = self.kind
        return f"{kind}_k{self.k}"

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    def problems(self, plan: Plan) -> list[str]:
        return self.threshold.problems(plan.num_steps)

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return {**self.threshold.initial_state(None), HINT: torch.tensor(-torch.inf)}

    def start_from(self, tensors: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
        return start_thresholds(tensors, None)

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return threshold_of(state)

    def forward_backward(self, batch: Batch) -> None:
        codes = self.select(batch)
        self.threshold.observe_batch(batch, self.codes_for_threshold(batch, codes))
        self.train(batch, codes)

    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        if as_trained:
            return self.select(rows)
        return rows.pre_activations().above(rows.state["threshold"])

    def select(self, rows: Rows) -> Pairs:
        """Select as in training."""
        return largest_of_batch(rows, self.k, hint_of(rows))

    def codes_for_threshold(self, batch: Batch, codes: Pairs) -> Pairs:
        """The codes (values above 0 only) whose least value enters the running mean of the threshold."""
        return codes


def hint_of(rows: Rows) -> dict[str, Tensor] | None:
    """The state in which selection keeps its guess of the next threshold; None outside training."""
    return rows.state if HINT in rows.state else None


def largest_of_batch(rows: Rows, k: int, state: dict[str, Tensor] | None = None) -> Pairs:
    """Those of the k * B largest pre-activations of B rows that are above 0.

    ``state`` keeps a guess of the next batch's threshold (``HINT``), which saves time; results are the same.
    """
    chosen = rows.pre_activations().largest_of_batch(k * rows.num_rows_of_all, state)
    return chosen.positive()
