"""Which layer each latent of a cross-layer transcoder reads, and which it writes to.

The F latents come in L blocks of F / L, a block for each layer. The latents of layer l read the rows of that
layer alone, and write to the targets of layer l and of all later ones (Ameisen et al. 2025, "Circuit Tracing:
Revealing Computational Graphs in Language Models"). So W_enc is [F, d], without zeros for the other layers,
and W_dec [F, L * o] is zero where a latent does not write.

Legend: B rows, F all latents, n latents of this process, L layers, d and o widths of a layer's rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .backends.plain.products import sums_of_parts
from .latent_shards import LatentShards
from .pairs import Pairs


@dataclass(frozen=True)
class LayerBlocks:
    """The blocks of the latents that this process holds; with one layer everything here changes nothing."""

    num_layers: int
    shards: LatentShards

    @property
    def bounds(self) -> tuple[int, ...]:
        """The first latent of every layer, as this process numbers them, and n at the end."""
        size, shards = self.shards.total // self.num_layers, self.shards
        firsts = (layer * size - shards.first for layer in range(self.num_layers + 1))
        return tuple(min(max(first, 0), shards.count) for first in firsts)

    def bounds_among(self, latents: Tensor) -> tuple[int, ...]:
        """The same for some of the latents: int64 [m], ascending."""
        bounds = torch.tensor(self.bounds, device=latents.device)
        return tuple(torch.searchsorted(latents, bounds).cpu().tolist())

    def layer_of(self, latents: Tensor) -> Tensor:
        """The layer of each of ``latents``, int64, as this process numbers them."""
        size = self.shards.total // self.num_layers
        return (latents + self.shards.first).div(size, rounding_mode="floor")

    def place_in_turn(self, latents: Tensor) -> Tensor:
        """The place among all F of ``latents`` (int64) if one of each layer follows after the other."""
        if self.num_layers == 1:
            return latents + self.shards.first
        size = self.shards.total // self.num_layers
        layer = self.layer_of(latents)
        return (latents + self.shards.first - layer * size) * self.num_layers + layer

    def by_layer(self, pairs: Pairs) -> Pairs:
        """``pairs`` [B, n] as those of B * L rows, where row b * L + l has the latents of layer l.

        That is the order of rows of all layers side by side, [B, L * d], seen as [B * L, d].
        """
        if self.num_layers == 1:
            return pairs

        def make() -> Pairs:
            rows = pairs.rows() * self.num_layers + self.layer_of(pairs.latent)
            num_rows = pairs.num_rows * self.num_layers
            return Pairs.from_rows(rows, pairs.latent, pairs.value, num_rows, pairs.num_latents)

        return pairs.once(("by layer", self.num_layers, self.shards.first), make).with_value(pairs.value)

    def rows_by_layer(self, rows: Tensor) -> Tensor:
        """Rows of all layers side by side, [B, L * d], as [B * L, d]."""
        return rows if self.num_layers == 1 else rows.reshape(-1, rows.shape[1] // self.num_layers)

    def unwritten(self, W_dec: Tensor) -> list[Tensor]:
        """Views of the parts of W_dec [n, L * o] where latents do not write: those of earlier layers."""
        width, bounds = W_dec.shape[1] // self.num_layers, self.bounds
        return [
            W_dec[bounds[layer] : bounds[layer + 1], : layer * width] for layer in range(1, self.num_layers)
        ]

    def clear_unwritten(self, W_dec: Tensor) -> None:
        """Set the parts of W_dec [n, L * o], or of its gradient, where latents do not write to zero."""
        for part in self.unwritten(W_dec):
            part.zero_()

    def clear_unwritten_of(self, latents: Tensor, rows: Tensor) -> None:
        """The same for rows [m, L * o] of some latents: int64 [m], as this process numbers them."""
        if self.num_layers > 1:
            layers = torch.arange(self.num_layers, device=rows.device)
            parts = rows.view(len(rows), self.num_layers, rows.shape[1] // self.num_layers)
            parts[layers < self.layer_of(latents)[:, None]] = 0.0

    def weighted_sum(self, weight: Tensor, W_enc: Tensor) -> Tensor:
        """weight @ W_enc over the latents of each layer, side by side: [n], [n, d] -> [L * d]."""
        if self.num_layers == 1:
            return self.shards.weighted_sum(weight, W_enc)
        unit, width = self.shards.unit, W_enc.shape[1]
        sums = W_enc.new_zeros(-(-len(W_enc) // unit), self.num_layers * width)
        for layer, (first, stop) in enumerate(pairwise(self.bounds)):
            if first < stop:
                units = slice(first // unit, -(-stop // unit))
                own = slice(units.start * unit, units.stop * unit)
                some = weight[own].clone()
                some[: first - own.start] = 0.0
                some[stop - own.start :] = 0.0
                columns = slice(layer * width, (layer + 1) * width)
                sums[units, columns] = sums_of_parts(some, W_enc[own], unit)
        return self.shards.gather_units(sums).sum(0)
