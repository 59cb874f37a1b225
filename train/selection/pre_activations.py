"""What a selection rule may ask of pre-activations, whatever device they are on.

Legend: B rows, b rows of a block, F latents, P pairs.
"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.choice import backend_of
from ..backends.protocol import Backend
from ..backends.sources import Blocks, Encoder, Scores, Source
from ..pairs import Pairs

HINT = "selection_hint"  # where a state keeps the guess of the next batch's threshold

Ranking = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class PreActivations:
    """Pre-activations of B rows, not computed yet. Answers are :class:`Pairs` with their values.

    On the compiled backend, and on every other one that screens, values are what :meth:`at` gives, bit for
    bit; a rule that needs all of them as a matrix product gives them asks for :meth:`as_computed`.

    Attributes:
        encoder: of the latents asked for.
        scores: what is compared instead of the encoder's values; None compares those.
        latents: int64 [n], ascending, which latents the encoder's are; None means all F.
        num_latents: F.
    """

    encoder: Encoder
    num_latents: int
    scores: Scores | None = None
    latents: Tensor | None = None

    @property
    def backend(self) -> Backend:
        """Who answers; picked by the encoder's weights."""
        return backend_of(self.encoder.W_enc)

    @property
    def source(self) -> Source:
        return self.encoder if self.scores is None else self.scores

    def of_rows(self, rows: slice) -> "PreActivations":
        """Of some of the rows; the weights of chosen latents are not gathered again."""
        assert self.scores is None, "scores are made for all rows at a time"
        return replace(self, encoder=self.encoder.of_rows(rows))

    def as_computed(self) -> "PreActivations":
        """The same, taken from the matrix product: not computed pair by pair once more."""
        return self._compared_by(self.encoder.blocks)

    def ranked_by(self, start: Callable[[], Ranking]) -> "PreActivations":
        """Selections compare what a ranking makes of the pre-activations, and return it as values.

        Args:
            start: begins a pass over all blocks, in order; the ranking that it returns turns each block of
                pre-activations [b, F] into as many numbers.
        """

        def ranked() -> Blocks:
            ranking = start()
            for first_row, pre in self.encoder.blocks():
                yield first_row, ranking(pre)

        return self._compared_by(ranked)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, float32 [b, n] in a buffer that the next block overwrites), rows ascending."""
        return self.source.blocks()

    def largest_per_row(self, k: int) -> Pairs:
        """TopK: the ``k`` largest of each row, the lowest latent first among equals; negative ones too.

        Raises:
            NonFiniteError: a pre-activation is NaN, or may be too large for float32. So do the others.
        """
        if not 1 <= k <= self.source.num_latents:
            raise ValueError(f"k must be from 1 to the number of latents, {self.source.num_latents}, got {k}")
        return self._over_all(self.backend.largest_per_row(self.source, k))

    def largest_of_batch(self, total: int, state: MutableMapping[str, Tensor] | None = None) -> Pairs:
        """BatchTopK: the ``total`` largest of all, the lowest (row, latent) first among equals.

        Args:
            state: keeps a guess of the threshold under :data:`HINT` (float32 []), for the next batch. It
                changes the time, never the result.
        """
        most = self.source.num_rows * self.source.num_latents
        if not 0 <= total <= most:
            raise ValueError(f"total must be from 0 to {most}, the pairs of rows and latents, got {total}")
        hint = None if state is None else state.get(HINT)
        chosen, guess = self.backend.largest_of_batch(self.source, total, hint)
        if state is not None and guess is not None:
            state[HINT] = guess if hint is None else guess.to(hint)
        return self._over_all(chosen)

    def largest_per_latent(self, counts: Tensor) -> Pairs:
        """Feature Choice: the ``counts[i]`` largest rows of latent i, the lowest row first among equals.

        ``counts`` is int64 [n], each from 0 to B.
        """
        num_latents, num_rows = self.source.num_latents, self.source.num_rows
        if counts.shape != (num_latents,) or counts.dtype != torch.int64:
            raise ValueError(f"counts must be int64 [{num_latents}], got {counts.dtype} {list(counts.shape)}")
        if num_latents and not (int(counts.min()) >= 0 and int(counts.max()) <= num_rows):
            raise ValueError(
                f"counts must be from 0 to the number of rows, {num_rows}, "
                f"got {int(counts.min())} to {int(counts.max())}"
            )
        return self._over_all(self.backend.largest_per_latent(self.source, counts.to(self.source.device)))

    def above(self, threshold: Tensor | float) -> Pairs:
        """Those strictly above ``threshold``, a number or float32 [n]; infinity admits none."""
        source = self.source
        each = torch.as_tensor(threshold, dtype=torch.float32, device=source.device)
        return self._over_all(self.backend.above(source, each.expand(source.num_latents).contiguous()))

    def at(self, pairs: Pairs) -> Tensor:
        """Pre-activations at given pairs over these latents, [P]: for rules whose score is not the value."""
        encoder = self.encoder
        dots = self.backend.sddmm(pairs, encoder.x_centered, encoder.W_enc)
        return dots + encoder.b_enc.index_select(0, pairs.latent)

    def _compared_by(self, stream: Callable[[], Blocks]) -> "PreActivations":
        encoder = self.encoder
        scores = Scores(stream, encoder.num_rows, encoder.num_latents, encoder.device)
        return replace(self, scores=scores)

    def _over_all(self, pairs: Pairs) -> Pairs:
        if self.latents is None:
            return pairs
        latent = self.latents.index_select(0, pairs.latent)
        return replace(pairs, latent=latent, num_latents=self.num_latents)
