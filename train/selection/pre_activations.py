"""The pre-activations of a batch as an object: selection rules query it, whatever the device.

Legend: B rows, b rows of a block, F latents, P pairs.
"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...distributed.group import ALONE, Group
from ..backends.choice import backend_of
from ..backends.protocol import Backend, Selections
from ..backends.sources import AnySource, Blocks, Encoder, LayeredEncoder, Scores, block_rows
from ..latent_shards import LatentShards
from ..layer_blocks import LayerBlocks
from ..pairs import Pairs
from . import agreement
from .layered import selections_of

HINT = "selection_hint"  # the key of a state under which the guess of the next batch's threshold is kept

Ranking = Callable[[int, Tensor], Tensor]
"""(first row, pre-activations [b, F]) -> what is ranked [b, F]"""


@dataclass(frozen=True, eq=False)
class PreActivations:
    """Pre-activations of B rows, which are not computed yet. Selections return :class:`Pairs` with values.

    Processes that share the latents, or the rows of a batch, select together; each gets its own pairs.

    The values are those of :meth:`at`, bit for bit. :meth:`as_computed` gives the values of a plain matrix
    product instead.

    Attributes:
        encoder: computes the pre-activations of the chosen latents, which may read one of several layers.
        scores: numbers to compare instead of the pre-activations; None compares those.
        latents: int64 [n], ascending, the latents of the encoder; None means all F.
        num_latents: F, of this process.
        latent_shards: who holds the other latents; None: there are no others.
        row_group: the processes that hold the other rows of the batch.
    """

    encoder: Encoder | LayeredEncoder
    num_latents: int
    scores: Scores | None = None
    latents: Tensor | None = None
    latent_shards: LatentShards | None = None
    row_group: Group = ALONE

    @property
    def shards(self) -> LatentShards:
        return self.latent_shards or LatentShards.divide(self.num_latents)

    @property
    def backend(self) -> Backend:
        """The backend that does the work; the device of the encoder's weights decides."""
        return backend_of(self.encoder.W_enc)

    @property
    def source(self) -> AnySource:
        """What selections compare."""
        return self.encoder if self.scores is None else self.scores

    @property
    def selections(self) -> Selections:
        """The rules of the backend, which work layer by layer where latents read several."""
        return selections_of(self.backend, self.source)

    def of_rows(self, rows: slice) -> "PreActivations":
        """The same for some of the rows. It shares the weights of the chosen latents."""
        assert self.scores is None, "scores are made for all rows at a time"
        return replace(self, encoder=self.encoder.of_rows(rows))

    def as_computed(self) -> "PreActivations":
        """The same with the values of the matrix product, which are not recomputed pair by pair."""
        return self._compared_by(lambda encoder: encoder.blocks())

    def ranked_by(self, ranking: Ranking) -> "PreActivations":
        """The same, but selections compare and return a function of the pre-activations.

        Args:
            ranking: maps the number of a block's first row and its pre-activations [b, F] to numbers [b, F].
                Every pass over the blocks calls it again.
        """

        def ranked(encoder: Encoder | LayeredEncoder) -> Blocks:
            for first_row, pre in encoder.blocks():
                yield first_row, ranking(first_row, pre)

        return self._compared_by(ranked)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, float32 [b, n]), rows ascending; each block overwrites the one before."""
        return self.source.blocks()

    def largest_per_row(self, k: int) -> Pairs:
        """TopK: select the ``k`` largest of each row, negative ones too; ties go to the lowest latent.

        Raises:
            NonFiniteError: a pre-activation is NaN or may overflow float32. All selections raise it.
        """
        most = self._most_latents()
        if not 1 <= k <= most:
            raise ValueError(f"k must be from 1 to the number of latents, {most}, got {k}")
        all_latents = self.latents is None
        chosen = agreement.largest_per_row(self.selections, self.source, k, self.shards, all_latents)
        return self._over_all(chosen)

    def largest_of_batch(self, total: int, state: MutableMapping[str, Tensor] | None = None) -> Pairs:
        """BatchTopK: select the ``total`` largest of all; ties go to the lowest (row, latent).

        Args:
            state: keeps a guess of the next batch's threshold under :data:`HINT` (float32 []). The guess
                changes the time, never the result.
        """
        most = self.row_group.add_up(self.source.num_rows) * self._most_latents()
        if not 0 <= total <= most:
            raise ValueError(f"total must be from 0 to {most}, the pairs of rows and latents, got {total}")
        hint = None if state is None else state.get(HINT)
        chosen, guess = agreement.largest_of_batch(self.selections, self.source, total, hint, self._sharers)
        if state is not None and guess is not None:
            state[HINT] = guess if hint is None else guess.to(hint)
        return self._over_all(chosen)

    def largest_per_latent(self, counts: Tensor) -> Pairs:
        """Feature Choice: select the ``counts[i]`` largest rows of latent i; ties go to the lowest row.

        ``counts`` is int64 [n], each from 0 to B of all processes, which is checked in main memory only:
        to ask a device is to wait for it.
        """
        num_latents, num_rows = self.source.num_latents, self.row_group.add_up(self.source.num_rows)
        if counts.shape != (num_latents,) or counts.dtype != torch.int64:
            raise ValueError(f"counts must be int64 [{num_latents}], got {counts.dtype} {list(counts.shape)}")
        here = counts.device.type == "cpu"
        if here and num_latents and not (int(counts.min()) >= 0 and int(counts.max()) <= num_rows):
            raise ValueError(
                f"counts must be from 0 to the number of rows, {num_rows}, "
                f"got {int(counts.min())} to {int(counts.max())}"
            )
        counts = counts.to(self.source.device)
        chosen = agreement.largest_per_latent(self.selections, self.source, counts, self._sharers)
        return self._over_all(chosen)

    def above(self, threshold: Tensor | float) -> Pairs:
        """Select all pairs strictly above ``threshold``, a number or float32 [n]; infinity selects none."""
        each = torch.as_tensor(threshold, dtype=torch.float32, device=self.source.device)
        each = each.expand(self.source.num_latents).contiguous()
        select = partial(agreement.above, self.selections, self.source, each)
        return self._over_all(self.shards.agreed(select))

    def at(self, pairs: Pairs) -> Tensor:
        """The pre-activations at given pairs, float32 [P]; for rules that compare other scores."""
        encoder, x = self.encoder, self.encoder.x_centered
        blocks = LayerBlocks(x.shape[1] // encoder.W_enc.shape[1], self.shards)
        dots = self.backend.sddmm(blocks.by_layer(pairs), blocks.rows_by_layer(x), encoder.W_enc)
        return dots + encoder.b_enc.index_select(0, pairs.latent)

    def _compared_by(self, make: Callable[[Encoder | LayeredEncoder], Blocks]) -> "PreActivations":
        """The same with the values that ``make`` gives; who holds which latents changes none of them."""
        size = block_rows(self.shards.total, self.encoder.device)
        encoder = replace(self.encoder, block_rows=size, slice_latents=self.shards.unit)
        stream = partial(make, encoder)
        scores = Scores(stream, encoder.num_rows, encoder.num_latents, encoder.device)
        return replace(self, scores=scores)

    @property
    def _sharers(self) -> agreement.Sharers:
        return agreement.Sharers(self.shards, self.row_group)

    def _most_latents(self) -> int:
        """The number of latents of the encoder, in all processes."""
        return self.shards.total if self.latents is None else self.shards.add_up(self.source.num_latents)

    def _over_all(self, pairs: Pairs) -> Pairs:
        if self.latents is None:
            return pairs
        latent = self.latents.index_select(0, pairs.latent)
        return replace(pairs, latent=latent, num_latents=self.num_latents)
