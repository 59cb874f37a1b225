"""The interface of a kind of SAE: its settings are fields, its rules are methods.

A variant is frozen and holds no tensors. The engine owns all tensors that change in training (``parameters``
and ``state``), so checkpoints are complete without any code in the variant.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from ....common.counts import Seed
from ....common.frozen import FrozenModel
from ....distributed.group import ALONE, Group
from ...engine.optimizer import Optimizer, OptimizerOverrides
from ...latent_shards import LatentShards
from ...pairs import Pairs
from .rows import Batch, Rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of a run for one variant, against which its settings are checked before the first step.

    Attributes:
        d_target: the width of what a transcoder predicts; None for an autoencoder.
        skip: the transcoder has a skip connection.
        free_decoder: the rows of W_dec may have any norm, whatever the variant says.
        hook_widths: of a crosscoder, whose sum is ``d_model``; else empty.
        num_layers: of a cross-layer transcoder; else 1. ``d_model`` and ``d_target`` are of all its layers.
        group: the processes that share the latents, and have the same rows of a batch as this one.
        row_group: those that share the rows of a batch, and have the same latents as this one.
        grid: all that train the SAE, by latents and then by rows; only if rows are shared.
    """

    d_model: int
    num_latents: int
    batch_rows: int
    num_steps: int
    batches_of_step: int = 1
    d_target: int | None = None
    skip: bool = False
    free_decoder: bool = False
    hook_widths: tuple[int, ...] = ()
    num_layers: int = 1
    group: Group = ALONE
    row_group: Group = ALONE
    grid: Group = ALONE

    @property
    def shards(self) -> LatentShards:
        """The latents that this process holds."""
        return LatentShards.divide(self.num_latents, self.group)

    @property
    def owners(self) -> LatentShards:
        """The latents that this process updates: some of those that it holds, where rows are shared."""
        return self.shards if self.row_group.size == 1 else LatentShards.divide(self.num_latents, self.grid)

    @property
    def own_rows(self) -> slice:
        """The rows of every batch that this process trains on."""
        own = self.row_group.share(self.batch_rows)
        return slice(own.start, own.stop)

    @property
    def d_encoder(self) -> int:
        """The width of W_enc: of a cross-layer transcoder that of one layer."""
        return self.d_model // self.num_layers

    @property
    def d_decoded(self) -> int:
        """The width of what is reconstructed."""
        return self.d_model if self.d_target is None else self.d_target

    @property
    def step_rows(self) -> int:
        return self.batch_rows * self.batches_of_step


class Variant(FrozenModel, ABC):
    """A kind of SAE. A new one is a subclass with its own ``kind`` in a new file of ``train/variants/``.

    The engine calls :meth:`forward_backward` once per batch. It selects pairs;
    :func:`.gradients.reconstruct` decodes them and returns the gradient of their values;
    :func:`.gradients.backpropagate` carries gradients of pre-activations into the encoder.
    """

    kind: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]*$")
    num_latents: PositiveInt | None = None
    seed: Seed | None = None
    optimizer: OptimizerOverrides = OptimizerOverrides()

    inference: ClassVar[str]
    """The rule outside training: ``topk`` (k per row), ``threshold`` (pre-activations above the tensor
    ``threshold``), or a name of the variant's own."""
    frozen_parameters: ClassVar[frozenset[str]] = frozenset()
    selects_alone: ClassVar[bool] = False
    """A latent is selected by its own pre-activation alone, so that its code may be scaled."""
    shares_rows: ClassVar[bool] = False
    """Whether processes may share the rows of a batch: then all that the rule counts or compares over a batch
    is of the rows of ``Batch.row_group``, for example by ``Batch.num_rows_of_all``."""

    @property
    def has_threshold(self) -> bool:
        """Whether a tensor ``threshold`` decides which latents are active at inference."""
        return self.inference == "threshold"

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether the rows of W_dec keep norm 1."""
        return True

    @property
    def needs_unit_decoder(self) -> bool:
        """Whether a penalty on the size of codes would fade if the rows of W_dec could grow instead."""
        return False

    @property
    @abstractmethod
    def default_name(self) -> str:
        """The name of the variant's folder if the config gives none; it shows the main settings."""

    @property
    @abstractmethod
    def expected_l0(self) -> float | None:
        """The number of active latents per row that the rule sets; None if a penalty decides it."""

    @abstractmethod
    def forward_backward(self, batch: Batch) -> None:
        """Add the losses and gradients of one batch to ``batch``, and report its codes to ``batch.record``.

        A step may have several batches; losses are averaged over the rows of all (``batch.step_rows``).
        """

    @abstractmethod
    def encode(self, rows: Rows, *, as_trained: bool = False) -> Pairs:
        """Encode outside training: deterministic, row by row; ``as_trained`` applies the training rule."""

    def problems(self, plan: Plan) -> list[str]:
        """The reasons why these settings are impossible under this plan, and how to fix them."""
        return []

    def extra_parameters(self, plan: Plan) -> Mapping[str, Tensor]:
        """Trained tensors beside W_enc, W_dec, b_enc and b_dec, at their initial values.

        They are [F, ...]; processes that share the latents keep their own rows.
        """
        return {}

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        """Running values that are not trained (thresholds, hints, densities), at their initial values.

        A tensor is [], or [F, ...], of which processes that share the latents keep their own rows.
        """
        return {}

    def inference_tensors(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors that :meth:`encode` needs beside the parameters (``threshold``: [] or [F]); saved."""
        return {}

    def start_from(self, tensors: Mapping[str, Tensor], plan: Plan) -> Mapping[str, Tensor]:
        """Parameters and state of the variant's own, for a run that starts from a trained SAE.

        Args:
            tensors: those of the SAE, in the units of the run's rows; it may be of another kind.

        Returns:
            Tensors by the names of :meth:`extra_parameters` and :meth:`initial_state`; the others start anew.
        """
        return {}

    def after_step(self, batch: Batch, optimizer: Optimizer) -> None:
        """Change parameters other than by gradients (resampling), after the update on ``batch``."""

    @property
    def run_name(self) -> str:
        """The name of the variant's folder in a run."""
        if self.name is not None:
            return self.name
        latents = "" if self.num_latents is None else f"_f{self.num_latents}"
        seed = "" if self.seed is None else f"_seed{self.seed}"
        return f"{self.default_name}{latents}{seed}"
