"""What a variant sees of a step: rows under one SAE's parameters, and where losses and gradients go.

Legend: R rows of the step, B rows of one part of it, D model width, F latents, P pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..common.fvu import sum_of_squares
from .kernels import EncoderBlocks, encode_blocks, sddmm
from .pairs import Pairs

BLOCK_BYTES = 32 * 2**20  # one block of pre-activations; keeps B x F from ever existing
PART_ROWS = 8192  # rows whose errors are in memory at a time in the backward pass


def block_rows(num_latents: int) -> int:
    """Rows of a block of pre-activations: a power of two, about :data:`BLOCK_BYTES`, from 32 to 4096."""
    fitting = BLOCK_BYTES // (4 * num_latents)
    return max(32, min(4096, 1 << max(fitting, 1).bit_length() - 1))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of activations and the SAE that encodes them; all that an inference rule may look at.

    Attributes:
        x_centered: float32 [B, D], normalized rows minus ``b_dec``.
        parameters: ``W_enc`` [F, D], ``W_dec`` [F, D], ``b_enc`` [F], ``b_dec`` [D], and the variant's own.
        state: the variant's running tensors while training, its inference tensors afterwards.
    """

    x_centered: Tensor
    parameters: Mapping[str, Tensor]
    state: dict[str, Tensor]

    @property
    def num_rows(self) -> int:
        return self.x_centered.shape[0]

    @property
    def num_latents(self) -> int:
        return self.parameters["W_enc"].shape[0]

    def blocks(self, latents: Tensor | None = None) -> EncoderBlocks:
        """Pre-activations x_centered @ W_enc.T + b_enc, by blocks of rows.

        ``latents`` (int64 [n]) asks for those only, as columns 0..n-1; see :meth:`relabelled`.
        """
        W_enc, b_enc = self.parameters["W_enc"], self.parameters["b_enc"]
        if latents is not None:
            W_enc, b_enc = W_enc.index_select(0, latents), b_enc.index_select(0, latents)
        return encode_blocks(self.x_centered, W_enc, b_enc, block_rows(W_enc.shape[0]))

    def relabelled(self, pairs: Pairs, latents: Tensor) -> Pairs:
        """Pairs over the columns of ``blocks(latents)``, over all F latents; ``latents`` ascending."""
        return replace(pairs, latent=latents.index_select(0, pairs.latent), num_latents=self.num_latents)

    def pre_activations_at(self, pairs: Pairs) -> Tensor:
        """Pre-activations at given pairs, [P]: for rules whose score is not the value."""
        return (
            sddmm(pairs, self.x_centered, self.parameters["W_enc"]) + self.parameters["b_enc"][pairs.latent]
        )


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
        gradients: one tensor per parameter, to add to.
        outcome: where losses and statistics go.
        dead: bool [F], latents that have not been active for ``dead_after_rows``.
        step: 0-based; num_steps: of the run, for the variant's own schedules.
        seed: the variant's seed.
        step_rows: R, which every loss is averaged over; a part, or one of several batches of a step, has
            fewer rows of its own.
        number_in_step: 0-based, of ``batches_of_step`` whose gradients make one step.
    """

    gradients: Mapping[str, Tensor]
    outcome: Outcome
    dead: Tensor
    step: int
    num_steps: int
    seed: int
    step_rows: int
    number_in_step: int = 0
    batches_of_step: int = 1

    @property
    def number(self) -> int:
        """0-based, of all batches of the run."""
        return self.step * self.batches_of_step + self.number_in_step

    def split(self, rows_per_part: int = PART_ROWS) -> Iterator[tuple[slice, "Batch"]]:
        """The rows of this batch in parts that share its gradients and outcome, with the rows each covers."""
        for start in range(0, self.num_rows, rows_per_part):
            rows = slice(start, min(start + rows_per_part, self.num_rows))
            yield rows, replace(self, x_centered=self.x_centered[rows])

    def record(self, codes: Pairs, error: Tensor) -> None:
        """Tell the codes [B, F] that were used and their error [B, D]: for FVU, L0 and dead latents."""
        active = codes.keep(codes.value != 0)
        self.outcome.firing += active.count_per_latent()
        self.outcome.row_l0.append(active.row_ptr.diff())
        self.outcome.squared_error += sum_of_squares(error)

    def generator(self, purpose: int = 0) -> torch.Generator:
        """Random numbers of this batch, a pure function of (seed, number, purpose): resuming repeats them."""
        mixed = ((self.seed * 1_000_003 + self.number) * 1_000_003 + purpose) % 2**63
        return torch.Generator(device=self.x_centered.device).manual_seed(mixed)
