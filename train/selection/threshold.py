"""Inference of the batch-wide rules, and JumpReLU: pre-activations above a threshold."""

import torch
from torch import Tensor

from ..kernels import Blocks
from ..pairs import Pairs


def select_threshold(blocks: Blocks, num_rows: int, num_latents: int, threshold: Tensor | float) -> Pairs:
    """Pre-activations strictly above ``threshold``, a number or one per latent [F]."""
    rows, latents, values = [], [], []
    for first_row, pre in blocks():
        row, latent = (pre > threshold).nonzero(as_tuple=True)
        rows.append(row + first_row)
        latents.append(latent)
        values.append(pre[row, latent])
    return Pairs.from_rows(torch.cat(rows), torch.cat(latents), torch.cat(values), num_rows, num_latents)
