"""Dot products at the places of a sparse matrix only (sampled dense-dense matrix product)."""

import torch
from torch import Tensor

from ..pairs import Pairs

CHUNK_PAIRS = 1 << 14  # gathered at a time: 2 x 50 MB at D = 768


def sddmm(pairs: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    """<g[row], W_dec[latent]> of every pair, whatever the pairs' values.

    Args:
        pairs: [B, F].
        g: float32 [B, D].
        W_dec: float32 [F, D].

    Returns:
        float32 [P].
    """
    rows = pairs.rows()
    out = g.new_empty(len(pairs))
    for start in range(0, len(pairs), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        torch.sum(g[rows[part]] * W_dec[pairs.latent[part]], dim=1, out=out[part])
    return out
