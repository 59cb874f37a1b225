"""The selected pairs of a block of rows; the blocks of a batch are joined into :class:`..pairs.Pairs`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pairs import Pairs


@dataclass(frozen=True, eq=False)
class BlockPairs:
    """Pairs of the rows that start at ``first_row``.

    Attributes:
        count: int64 [b], the number of pairs of each row.
        latent: int64 [P], ascending within a row. value: float32 [P].
    """

    first_row: int
    count: Tensor
    latent: Tensor
    value: Tensor

    def keep(self, mask: Tensor) -> "BlockPairs":
        """Drop the pairs where ``mask`` (bool [P]) is False."""
        row = torch.repeat_interleave(self.count, output_size=self.latent.numel())
        count = torch.bincount(row[mask], minlength=self.count.numel())
        return BlockPairs(self.first_row, count, self.latent[mask], self.value[mask])


def assemble(blocks: Sequence[BlockPairs], num_latents: int, device: torch.device) -> Pairs:
    """Join blocks, given in any order, to the pairs of a batch; no block gives a batch without rows."""
    if not blocks:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        blocks = [BlockPairs(0, none, none, torch.zeros(0, device=device))]
    ordered = sorted(blocks, key=lambda block: block.first_row)
    count = torch.cat([block.count for block in ordered])
    row_ptr = torch.zeros(count.numel() + 1, dtype=torch.int64, device=device)
    torch.cumsum(count, 0, out=row_ptr[1:])
    return Pairs(
        row_ptr=row_ptr,
        latent=torch.cat([block.latent for block in ordered]),
        value=torch.cat([block.value for block in ordered]),
        num_latents=num_latents,
    )
