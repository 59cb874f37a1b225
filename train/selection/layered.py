"""Selections among latents that read one of several layers each: made layer by layer, and joined.

A backend selects in each layer with all that it has (screening products, kernels), so the work is that of one
encoder as wide as a layer. What is selected is what one encoder with zeros for the other layers would give.

Legend: B rows, F latents, L layers, P pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from ..backends import guessing
from ..backends.plain.selection import kth_largest, mask_of_largest
from ..backends.protocol import SearchRows, Selections
from ..backends.sources import AnySource, Encoder, LayeredEncoder
from ..latent_shards import LatentShards
from ..pairs import Pairs
from .agreement import keep_largest_per_row, nothing


@dataclass(frozen=True)
class LayeredSelections:
    """The rules of :class:`..backends.protocol.Selections` for a :class:`LayeredEncoder`, by a backend's."""

    backend: Selections
    search_rows: SearchRows | None = None

    def largest_per_row(self, source: AnySource, k: int) -> Pairs:
        """See :meth:`..backends.protocol.Selections.largest_per_row`."""

        def select(encoder: Encoder, _: slice) -> Pairs:
            return self.backend.largest_per_row(encoder, min(k, encoder.num_latents))

        candidates = _join(source, select)
        return keep_largest_per_row(candidates, k, LatentShards.divide(source.num_latents))

    def largest_of_batch(
        self, source: AnySource, total: int, hint: Tensor | None
    ) -> tuple[Pairs, Tensor | None]:
        """See :meth:`..backends.protocol.Selections.largest_of_batch`."""
        collector = guessing.Collector(
            reaching=self._reaching, kth_largest=kth_largest, mask_of_largest=mask_of_largest
        )
        return guessing.largest_of_batch(collector, source, total, hint)

    def largest_per_latent(self, source: AnySource, counts: Tensor) -> Pairs:
        """See :meth:`..backends.protocol.Selections.largest_per_latent`."""
        return _join(source, lambda encoder, own: self.backend.largest_per_latent(encoder, counts[own]))

    def above(self, source: AnySource, threshold: Tensor) -> Pairs:
        """See :meth:`..backends.protocol.Selections.above`."""
        return _join(source, lambda encoder, own: self.backend.above(encoder, threshold[own].contiguous()))

    def _reaching(self, source: AnySource, threshold: float, total: int) -> Pairs:
        if threshold == -inf:  # all pairs reach it: the largest of every layer are enough

            def select(encoder: Encoder, _: slice) -> Pairs:
                most = encoder.num_rows * encoder.num_latents
                return self.backend.largest_of_batch(encoder, min(total, most), None)[0]

            return _join(source, select)
        each = torch.full((source.num_latents,), threshold, device=source.device)
        return self.above(source, each.nextafter(torch.full_like(each, -inf)))


def selections_of(backend: Selections, source: AnySource) -> Selections:
    """What selects among ``source``: the ``backend`` itself, or layer by layer."""
    return LayeredSelections(backend) if isinstance(source, LayeredEncoder) else backend


def _join(source: AnySource, select: Callable[[Encoder, slice], Pairs]) -> Pairs:
    """The pairs of all layers, each selected from a layer's encoder and its latents."""
    assert isinstance(source, LayeredEncoder), "selections_of has checked that"
    found = [(own.start, select(encoder, own)) for own, encoder in source.layers]
    return join_layers(found, source.num_latents) if found else nothing(source)


def join_layers(parts: Sequence[tuple[int, Pairs]], num_latents: int) -> Pairs:
    """Pairs of the same rows as one: each part has the latents from a number on, and the numbers ascend."""
    if len(parts) == 1 and parts[0][1].num_latents == num_latents:
        return parts[0][1]
    counts = torch.stack([pairs.row_ptr.diff() for _, pairs in parts])  # [L, B]
    row_ptr = torch.zeros_like(parts[0][1].row_ptr)
    torch.cumsum(counts.sum(0), 0, out=row_ptr[1:])
    starts = row_ptr[:-1] + counts.cumsum(0) - counts
    latent = torch.cat([pairs.latent + first for first, pairs in parts])
    value = torch.cat([pairs.value for _, pairs in parts])
    places = torch.cat(
        [
            (start - pairs.row_ptr[:-1])[pairs.rows()] + torch.arange(len(pairs), device=latent.device)
            for start, (_, pairs) in zip(starts, parts, strict=True)
        ]
    )
    return Pairs(
        row_ptr=row_ptr,
        latent=torch.empty_like(latent).index_copy_(0, places, latent),
        value=torch.empty_like(value).index_copy_(0, places, value),
        num_latents=num_latents,
    )
