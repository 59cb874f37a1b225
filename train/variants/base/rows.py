"""The input of a variant: rows with one SAE's parameters; in training also where losses and gradients go.

Legend: R rows of the step, B rows of one part of it, D model width, F latents, P pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from ....distributed.group import ALONE, Group
from ...backends.choice import backend_of
from ...backends.gates import Draw
from ...backends.protocol import Backend
from ...backends.sources import Encoder, LayeredEncoder
from ...engine.late import LateRead
from ...latent_shards import LatentShards
from ...layer_blocks import LayerBlocks
from ...pairs import Pairs
from ...selection.pre_activations import PreActivations

PART_ROWS = 8192  # rows whose errors the backward pass holds in memory at a time


class RandomStream(IntEnum):
    """The users of random numbers. Each has its own stream, so that none repeats another's numbers."""

    GATES = 0  # of Probabilistic TopK
    RESAMPLING = 1
    NFM_INF = 2
    POOL = 3  # of Sampled-SAE


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of activations and the SAE that encodes them. Inference rules see nothing else.

    Attributes:
        x_centered: float32 [B, D], normalized rows minus ``b_dec`` (a transcoder's: minus ``b_in``).
        parameters: ``W_enc`` [F, D], ``W_dec`` [F, O], ``b_enc`` [F], ``b_dec`` [O], and the variant's own. O
            is D unless a transcoder's target has another width; it also has ``b_in`` [D], and ``W_skip``
            [O, D] if it has a skip connection. Of a cross-layer transcoder ``W_enc`` is [F, D / L].
        state: the variant's running tensors during training, its inference tensors afterwards.
        first_row: the number of the first row in its batch, of which these rows may be a part.
        number: the 0-based number of the batch in the run; outside training that of the batches encoded.
        seed: the variant's seed; 0 outside training.
        latent_shards: who holds the other latents, if these tensors hold some of F; None: they hold all.
        row_group: the processes that hold the other rows of the batch, with the same latents.
    """

    x_centered: Tensor
    parameters: Mapping[str, Tensor]
    state: dict[str, Tensor]
    first_row: int = 0
    number: int = 0
    seed: int = 0
    latent_shards: LatentShards | None = None
    row_group: Group = ALONE

    @property
    def num_rows(self) -> int:
        return self.x_centered.shape[0]

    @property
    def num_rows_of_all(self) -> int:
        """The number of rows of all processes of the row group, which must all ask."""
        return self.row_group.add_up(self.num_rows)

    @property
    def num_latents(self) -> int:
        """The number of latents of this process."""
        return self.parameters["W_enc"].shape[0]

    @property
    def shards(self) -> LatentShards:
        """The latents of this process among all F, and the way to the others."""
        return self.latent_shards or LatentShards.divide(self.num_latents)

    @property
    def layers(self) -> LayerBlocks:
        """The layers that the latents of a cross-layer transcoder read; other SAEs have one."""
        return LayerBlocks(self.x_centered.shape[1] // self.parameters["W_enc"].shape[1], self.shards)

    @property
    def backend(self) -> Backend:
        """The backend for these rows."""
        return backend_of(self.x_centered)

    def pre_activations(self, latents: Tensor | None = None, *, screened: bool = True) -> PreActivations:
        """x_centered @ W_enc.T + b_enc, which is not computed yet.

        ``latents`` (int64 [n], ascending) restricts them; selections still number the latents among all that
        this process holds.
        With ``screened=False`` the values are those of the matrix product: some rules keep so many pairs that
        recomputing each would cost more than the product.
        """
        W_enc, b_enc, layers = self.parameters["W_enc"], self.parameters["b_enc"], self.layers
        if latents is not None:
            W_enc, b_enc = W_enc.index_select(0, latents), b_enc.index_select(0, latents)
        encoder: Encoder | LayeredEncoder
        if layers.num_layers == 1:
            encoder = Encoder(self.x_centered, W_enc, b_enc)
        else:
            bounds = layers.bounds if latents is None else layers.bounds_among(latents)
            encoder = LayeredEncoder(self.x_centered, W_enc, b_enc, bounds)
        pre = PreActivations(
            encoder,
            num_latents=self.num_latents,
            latents=latents,
            latent_shards=self.latent_shards,
            row_group=self.row_group,
        )
        return pre if screened else pre.as_computed()

    def random_uniform(
        self, stream: RandomStream, first_row: int, num_rows: int, num_columns: int, first_column: int = 0
    ) -> Tensor:
        """Numbers in (0, 1), float32 [num_rows, num_columns], for rows of the batch from ``first_row`` on.

        Each is a function of (seed, number of the batch, stream, row, column) alone, on every device.
        """
        seed, batch, *_ = self.draw(stream, first_row)
        device = self.x_centered.device
        return self.backend.random_uniform(
            seed, batch, first_row, num_rows, num_columns, device, first_column
        )

    def draw(self, stream: RandomStream, first_row: int, first_column: int = 0) -> Draw:
        """Which numbers :meth:`random_uniform` draws, for an operation that draws them itself."""
        return self.seed % 2**64, stream << 32 | self.number, first_row, first_column

    def random_order(self, stream: RandomStream, size: int) -> Tensor:
        """A random permutation of the numbers below ``size``, int64 [size], for the whole batch."""
        numbers = self.random_uniform(stream, 0, 2, size)
        # they have 23 bits, so that some tie: the second ones decide then, below the last bit of the first
        return torch.argsort(numbers[0].double().add_(numbers[1], alpha=2.0**-24), stable=True)


@dataclass(kw_only=True)
class Outcome:
    """The losses and statistics of a step, summed over its parts.

    Attributes:
        losses: the weighted loss terms by name, float64 [].
        squared_error: sum over rows of |reconstruction - x|², float64 [].
        firing: number of rows on which each latent is active, int64 [F].
        row_l0: number of active latents of each row, int64, a tensor per part.
        through_encoder: sum over each latent's pairs of d loss / d pre-activation, [F], for ``b_dec``.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    squared_error: Tensor
    firing: Tensor
    row_l0: list[Tensor] = field(default_factory=list)
    through_encoder: Tensor

    @classmethod
    def empty(cls, num_latents: int, device: torch.device) -> "Outcome":
        zeros = torch.zeros(8 + 12 * num_latents, dtype=torch.uint8, device=device)  # all in one operation
        end = 8 + 8 * num_latents
        return cls(
            squared_error=zeros[:8].view(torch.float64)[0],
            firing=zeros[8:end].view(torch.int64),
            through_encoder=zeros[end:].view(torch.float32),
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
    """A batch of a variant's training step, or a part of its rows.

    Attributes:
        target_centered: float32 [B, O], the rows to reconstruct, minus ``b_dec`` and what a skip connection
            predicts; for an autoencoder it is the tensor ``x_centered``.
        gradients: one tensor per parameter; variants add to it.
        outcome: collects losses and statistics.
        dead: bool [F], latents that have not been active for ``dead_after_rows``.
        num_dead: how many they are, on its way to the host; None if nobody has asked for it.
        num_steps: the steps of the run, for the variant's own schedules.
        step_rows: R, the rows of the step, over which every loss is averaged. A part, or one of several
            batches of a step, has fewer rows.
        batches_of_step: number of batches whose gradients make one step.
        hook_widths: the widths of the hooks whose rows are side by side in a row of a crosscoder; else empty.
    """

    target_centered: Tensor
    gradients: Mapping[str, Tensor]
    outcome: Outcome
    dead: Tensor
    num_steps: int
    step_rows: int
    batches_of_step: int = 1
    num_dead: LateRead | None = None
    hook_widths: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """The 0-based step."""
        return self.number // self.batches_of_step

    @property
    def number_in_step(self) -> int:
        """The 0-based number of this batch in its step."""
        return self.number % self.batches_of_step

    def dead_latents(self) -> Tensor:
        """The dead latents, int64 [n], ascending."""
        count = int(self.dead.sum() if self.num_dead is None else self.num_dead.numbers())
        if count == 0:
            return self.dead.new_empty(0, dtype=torch.int64)
        return torch.nonzero_static(self.dead, size=count).flatten()

    def split(self, rows_per_part: int = PART_ROWS) -> Iterator[tuple[slice, "Batch"]]:
        """Yield the batch in parts, each with its slice of rows; they share gradients and outcome."""
        for start in range(0, self.num_rows, rows_per_part):
            rows = slice(start, min(start + rows_per_part, self.num_rows))
            yield rows, self.of_rows(rows)

    def of_rows(self, rows: slice) -> "Batch":
        """A part of the rows, which shares the gradients and the outcome."""
        start, stop, _ = rows.indices(self.num_rows)
        if stop - start == self.num_rows:
            return self
        return replace(
            self,
            x_centered=self.x_centered[rows],
            target_centered=self.target_centered[rows],
            first_row=self.first_row + start,
        )

    def leading_rows(self, count: int) -> "Batch":
        """Those of the first ``count`` rows of a whole batch that this process has, maybe none."""
        return self.of_rows(slice(0, max(0, count - self.first_row)))

    def rows_of_all(self, source: Tensor, numbers: Tensor) -> Tensor:
        """Rows ``numbers`` (int64 [m], of the batch) of a tensor whose part [B, ...] each process has."""
        if self.row_group.size == 1:
            return source[numbers]
        firsts = torch.stack(self.row_group.gather(numbers.new_tensor(self.first_row)))
        own = numbers - self.first_row
        here = (own >= 0) & (own < self.num_rows)
        found = source.new_zeros(len(numbers), *source.shape[1:])
        found[here] = source[own[here]]
        holder = torch.bucketize(numbers, firsts[1:], right=True)
        every = torch.stack(self.row_group.gather(found))
        return every[holder, torch.arange(len(numbers), device=numbers.device)]

    def record(self, codes: Pairs, squared_error: Tensor) -> None:
        """Record the codes [B, F] that were used, for L0 and dead latents, and their error, for FVU.

        ``squared_error`` is the sum of |reconstruction - x|² over the rows, float64 []. Several rows of
        ``codes``, one after the other, may have the codes of one row.
        """
        row_l0, firing = self.backend.count_active(codes)
        if codes.num_rows != self.num_rows:
            row_l0 = row_l0.view(self.num_rows, -1).sum(1)
        self.outcome.firing += firing
        self.outcome.row_l0.append(self.shards.sum(row_l0))
        self.outcome.squared_error += squared_error
