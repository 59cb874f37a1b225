"""What a variant sees of a step: rows under one SAE's parameters, and where losses and gradients go.

Legend: R rows of the step, B rows of one part of it, D model width, F latents, P pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from ....common.fvu import sum_of_squares
from ...backends.choice import backend_of
from ...backends.protocol import Backend
from ...backends.sources import Encoder
from ...pairs import Pairs
from ...selection.pre_activations import PreActivations

PART_ROWS = 8192  # rows whose errors are in memory at a time in the backward pass


class RandomStream(IntEnum):
    """Who draws random numbers: each has a stream of its own, so that none repeats another's."""

    GATES = 0  # of Probabilistic TopK
    RESAMPLING = 1
    NFM_INF = 2
    POOL = 3  # of Sampled-SAE


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of activations and the SAE that encodes them; all that an inference rule may look at.

    Attributes:
        x_centered: float32 [B, D], normalized rows minus ``b_dec``.
        parameters: ``W_enc`` [F, D], ``W_dec`` [F, D], ``b_enc`` [F], ``b_dec`` [D], and the variant's own.
        state: the variant's running tensors while training, its inference tensors afterwards.
        number: 0-based, of all batches of the run; 0 outside training.
        seed: the variant's seed; 0 outside training.
    """

    x_centered: Tensor
    parameters: Mapping[str, Tensor]
    state: dict[str, Tensor]
    number: int = 0
    seed: int = 0

    @property
    def num_rows(self) -> int:
        return self.x_centered.shape[0]

    @property
    def num_latents(self) -> int:
        return self.parameters["W_enc"].shape[0]

    @property
    def backend(self) -> Backend:
        """Who computes on these rows."""
        return backend_of(self.x_centered)

    def pre_activations(self, latents: Tensor | None = None, *, screened: bool = True) -> PreActivations:
        """x_centered @ W_enc.T + b_enc, not computed yet.

        ``latents`` (int64 [n], ascending) asks for those only; selections still name them by their numbers
        among all F. Without ``screened`` the values are the matrix product's: for rules that keep so many
        pairs that computing each of them once more would cost more than the product.
        """
        W_enc, b_enc = self.parameters["W_enc"], self.parameters["b_enc"]
        if latents is not None:
            W_enc, b_enc = W_enc.index_select(0, latents), b_enc.index_select(0, latents)
        encoder = Encoder(self.x_centered, W_enc, b_enc)
        pre = PreActivations(encoder, num_latents=self.num_latents, latents=latents)
        return pre if screened else pre.as_computed()

    def generator(self, stream: RandomStream) -> torch.Generator:
        """Random numbers of this batch, a pure function of (seed, number, stream): resuming repeats them."""
        mixed = ((self.seed * 1_000_003 + self.number) * 1_000_003 + stream) % 2**63
        return torch.Generator(device=self.x_centered.device).manual_seed(mixed)


@dataclass(kw_only=True)
class Outcome:
    """What a step yields beside gradients, summed over its parts.

    Attributes:
        losses: every loss term by name, each already weighted: float64 [].
        squared_error: sum over rows of |reconstruction - x|², float64 [].
        firing: rows on which each latent is active, int64 [F].
        row_l0: active latents of each row, int64 [R], part by part.
        through_encoder: sum over pairs of d loss / d pre-activation, [F]; reaches ``b_dec`` at the end.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    squared_error: Tensor
    firing: Tensor
    row_l0: list[Tensor] = field(default_factory=list)
    through_encoder: Tensor

    @classmethod
    def empty(cls, num_latents: int, device: torch.device) -> "Outcome":
        return cls(
            squared_error=torch.zeros((), dtype=torch.float64, device=device),
            firing=torch.zeros(num_latents, dtype=torch.int64, device=device),
            through_encoder=torch.zeros(num_latents, device=device),
        )

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a weighted loss term, float64 []."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    @property
    def loss(self) -> Tensor:
        """The sum of all terms, float64 []."""
        return torch.stack(list(self.losses.values())).sum()


@dataclass(frozen=True, kw_only=True)
class Batch(Rows):
    """One step of one variant, or a part of its rows.

    Attributes:
        target_centered: float32 [B, D], what is reconstructed, minus ``b_dec``; an autoencoder's is the
            tensor ``x_centered`` itself.
        gradients: one tensor per parameter, to add to.
        outcome: where losses and statistics go.
        dead: bool [F], latents that have not been active for ``dead_after_rows``.
        num_steps: of the run, for the variant's own schedules.
        step_rows: R, which every loss is averaged over; a part, or one of several batches of a step, has
            fewer rows of its own.
        batches_of_step: batches whose gradients make one step.
    """

    target_centered: Tensor
    gradients: Mapping[str, Tensor]
    outcome: Outcome
    dead: Tensor
    num_steps: int
    step_rows: int
    batches_of_step: int = 1

    @property
    def step(self) -> int:
        """0-based."""
        return self.number // self.batches_of_step

    @property
    def number_in_step(self) -> int:
        """0-based, among the batches of the step."""
        return self.number % self.batches_of_step

    def split(self, rows_per_part: int = PART_ROWS) -> Iterator[tuple[slice, "Batch"]]:
        """The rows of this batch in parts that share its gradients and outcome, with the rows each covers."""
        for start in range(0, self.num_rows, rows_per_part):
            rows = slice(start, min(start + rows_per_part, self.num_rows))
            yield rows, self.of_rows(rows)

    def of_rows(self, rows: slice) -> "Batch":
        """A part of the rows, which shares gradients and outcome."""
        return replace(self, x_centered=self.x_centered[rows], target_centered=self.target_centered[rows])

    def record(self, codes: Pairs, error: Tensor) -> None:
        """Count the codes [B, F] that were used, and their error [B, D]: for FVU, L0 and dead latents."""
        active = codes.keep(codes.value != 0)
        self.outcome.firing += active.count_per_latent()
        self.outcome.row_l0.append(active.row_ptr.diff())
        self.outcome.squared_error += sum_of_squares(error)
