"""Feature Choice: for each latent, the rows that match it best."""

import torch
from torch import Tensor

from ..kernels import Blocks
from ..pairs import Pairs
from . import reference


def select_per_latent(blocks: Blocks, num_rows: int, num_latents: int, counts: Tensor) -> Pairs:
    """The ``counts[i]`` rows with the largest pre-activation of latent i; the lowest row first among
    equals.
    """
    pre = torch.cat([block.clone() for _, block in blocks()])
    rows, latent = reference.per_latent(pre, counts).nonzero(as_tuple=True)
    return Pairs.from_rows(rows, latent, pre[rows, latent], num_rows, num_latents)
