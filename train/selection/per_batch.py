"""BatchTopK and Mutual Choice: the largest pre-activations of the whole batch."""

import torch
from torch import Tensor

from ..kernels import Blocks
from ..pairs import Pairs
from . import reference


def select_per_batch(
    blocks: Blocks,
    num_rows: int,
    num_latents: int,
    total: int,
    state: object = None,
    allowed: Tensor | None = None,
) -> Pairs:
    """The ``total`` largest of all; the lowest (row, latent) first among equals."""
    pre = torch.cat([block.clone() for _, block in blocks()])
    rows, latent = reference.per_batch(pre, total, allowed).nonzero(as_tuple=True)
    return Pairs.from_rows(rows, latent, pre[rows, latent], num_rows, num_latents)
