"""The selected pairs of some rows of a batch, on the way to :class:`Pairs`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pairs import Pairs


@dataclass(frozen=True, eq=False)
class Piece:
    """Pairs of the rows that start at ``first_row``.

    Attributes:
        count: int64 [b], pairs of each row.
        latent: int64 [P], ascending within a row. value: float32 [P].
    """

    first_row: int
    count: Tensor
    latent: Tensor
    value: Tensor


def assemble(pieces: Sequence[Piece], num_latents: int) -> Pairs:
    """All rows of a batch, from pieces in any order."""
    ordered = sorted(pieces, key=lambda piece: piece.first_row)
    count = torch.cat([piece.count for piece in ordered])
    row_ptr = torch.zeros(count.numel() + 1, dtype=torch.int64, device=count.device)
    torch.cumsum(count, 0, out=row_ptr[1:])
    return Pairs(
        row_ptr=row_ptr,
        latent=torch.cat([piece.latent for piece in ordered]),
        value=torch.cat([piece.value for piece in ordered]),
        num_latents=num_latents,
    )
