"""Rows to compare an export on: random ones that are like what the SAE decodes, and those of a cache.

Legend: B rows, D model width, F latents, K active latents.
"""

from collections.abc import Iterator
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from ...store import ActivationCache
from ...train import SAE
from ..measure import MeasuredRows
from .space import Space

RANDOM_ROWS, BLOCK_ROWS = 512, 512
NOISE = 0.1  # of a row's norm, in no direction of the dictionary


def random_rows(sae: SAE, space: Space) -> Tensor:
    """b_dec and a few decoder rows in random amounts, as handed in: float32 [B, D], always the same.

    Raw rows get a mean and a standard deviation of their own, the latter around 1, where the normalization
    takes them away again.
    """
    generator = torch.Generator().manual_seed(0)
    num_latents, d_model = sae.cfg.num_latents, sae.cfg.d_model
    num_active = min(num_latents, max(1, round(sae.cfg.k or 8)))
    latent_BK = torch.randint(num_latents, (RANDOM_ROWS, num_active), generator=generator)
    amount_BK = torch.rand(latent_BK.shape, generator=generator)
    row_BD = torch.einsum("bk,bkd->bd", amount_BK, sae.W_dec[latent_BK])
    noise_BD = torch.randn(row_BD.shape, generator=generator)
    row_BD = row_BD / _norm(row_BD) + NOISE * noise_BD / _norm(noise_BD)
    normalizer = sae.normalizer
    unit = normalizer.starts_from == "unit"
    typical = normalizer.factor or 1.0 if unit else sqrt(d_model)
    raw_BD = row_BD * typical + sae.b_dec
    if unit:
        mean, spread = (torch.randn(RANDOM_ROWS, 1, generator=generator) for _ in range(2))
        raw_BD = raw_BD / raw_BD.std(1, keepdim=True).clamp_min(1e-6) * (0.5 * spread).exp() + mean
    else:
        raw_BD = raw_BD / (normalizer.factor or 1.0)
    return raw_BD if space.rows == "raw" else normalizer.apply(raw_BD)[0]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = x.norm(dim=1, keepdim=True)
    return norm.clamp_min(1e-12)


def cached_rows(sae: SAE, space: Space, cache: ActivationCache, measured: MeasuredRows) -> Iterator[Tensor]:
    """Rows of the cache as handed in, in blocks: float32 [B, D]."""
    kind = "none" if space.rows == "raw" else sae.normalizer.kind
    for block in measured.blocks(BLOCK_ROWS):
        index = np.arange(block.start, block.stop)
        yield cache.rows(sae.cfg.hook, index, split=measured.split, normalization=kind).float()
