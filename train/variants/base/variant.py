"""What one kind of SAE is: its settings (the fields) and its rules (the methods).

A variant is frozen and holds no tensors. What changes while it trains lives in named tensors that the engine
owns (``parameters`` and ``state``), so that checkpoints hold everything and no variant has to save itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...engine.optimizer import Optimizer, OptimizerOverrides
from ...pairs import Pairs
from .rows import Batch, Rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before the first step; what a variant's settings are checked against."""

    d_model: int
    num_latents: int
    batch_rows: int
    num_steps: int
    batches_of_step: int = 1

    @property
    def step_rows(self) -> int:
        return self.batch_rows * self.batches_of_step


class Variant(FrozenModel, ABC):
    """One kind of SAE. A new one is a subclass with its own ``kind`` in a new file of ``train/variants/``.

    The engine calls :meth:`forward_backward` once a step; whatever it does, it is built from
    :mod:`.step`: pairs are selected, :func:`.step.reconstruct` decodes them and returns the gradient of their
    values, :func:`.step.backpropagate` carries gradients of pre-activations into the encoder.
    """

    kind: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]*$")
    num_latents: PositiveInt | None = None
    seed: int | None = None
    optimizer: OptimizerOverrides = OptimizerOverrides()

    inference: ClassVar[str]
    """How codes are found outside training: ``topk`` (k per row), ``threshold`` (pre-activations above the
    tensor ``threshold``), or a name of the variant's own."""
    frozen_parameters: ClassVar[frozenset[str]] = frozenset()

    @property
    def has_threshold(self) -> bool:
        """Whether a tensor ``threshold`` decides at inference what is active."""
        return self.inference == "threshold"

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether the rows of W_dec keep norm 1."""
        return True

    @property
    @abstractmethod
    def default_name(self) -> str:
        """The name of the run's folder when the config gives none; says the settings that set it apart."""

    @property
    @abstractmethod
    def expected_l0(self) -> float | None:
        """Active latents per row that the rule asks for; None when a penalty decides it."""

    @abstractmethod
    def forward_backward(self, batch: Batch) -> None:
        """One batch: add losses and gradients to ``batch``, and tell it the codes (``batch.record``).

        Every batch of a step comes here; only the loss is averaged over all of them (``batch.step_rows``).
        """

    @abstractmethod
    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        """Codes outside training: deterministic, row by row; ``as_trained`` asks for the training rule."""

    def problems(self, plan: Plan) -> list[str]:
        """What is impossible about these settings under this plan, with the way out; empty if nothing is."""
        return []

    def extra_parameters(self, plan: Plan) -> Mapping[str, Tensor]:
        """Trained tensors beside W_enc, W_dec, b_enc and b_dec, at their initial values."""
        return {}

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        """Running values that are not trained (thresholds, hints, densities), at their initial values."""
        return {}

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What :meth:`encode` needs beside the parameters (``threshold``: [] or [F]); saved with them."""
        return {}

    def after_step(self, batch: Batch, optimizer: Optimizer) -> None:
        """What changes parameters outside the gradient, after the update on ``batch`` (resampling)."""

    @property
    def run_name(self) -> str:
        """The name of the variant's folder in a run."""
        if self.name is not None:
            return self.name
        latents = "" if self.num_latents is None else f"_f{self.num_latents}"
        seed = "" if self.seed is None else f"_seed{self.seed}"
        return f"{self.default_name}{latents}{seed}"
