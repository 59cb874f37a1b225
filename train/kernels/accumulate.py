"""Gradients by latent: the transpose of a code matrix, times dense rows."""

import torch
from torch import Tensor

from ..pairs import Pairs


def accumulate_by_latent(pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row], rows ascending.

    Args:
        pairs: [B, F]; their values are not looked at.
        coefficient: float32 [P].
        source: float32 [B, D].
        out: float32 [F, D], added to.
    """
    latent, order = pairs.latent.sort(stable=True)
    latent_ptr = torch.searchsorted(latent, torch.arange(pairs.num_latents, device=latent.device))
    out += torch.nn.functional.embedding_bag(
        pairs.rows()[order], source, latent_ptr, mode="sum", per_sample_weights=coefficient[order]
    )
