"""Whether decoder directions align ("dictionary collapse"): statistics of the neural feature matrix.

NFM = Ŵ Ŵᵀ [F, F], where Ŵ is W_dec with rows of norm 1. "Adaptive Sparse Allocation with Mutual Choice &
Feature Choice Sparse Autoencoders", appendix C. It is never formed.
Legend: D model width, F latents, S sampled latents.
"""

from math import sqrt

import torch
from torch import Tensor

from ...train.variants.losses.nfm import nearest_others, unit_rows
from ..results import DecoderCollapse

NEAREST_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SAME_DIRECTION = 0.9  # latents above this cosine point the same way, for most purposes
_BLOCK_LATENTS, _BLOCK_COSINES = 512, 1 << 24


def measure_collapse(W_dec: Tensor, num_sampled: int, seed: int) -> DecoderCollapse:
    """Measure how much the decoder's directions ``W_dec`` [F, D] align.

    The norm of the NFM is that of Ŵᵀ Ŵ, a [D, D] matrix. The nearest other latent is searched for
    ``num_sampled`` latents drawn with ``seed`` (all if there are no more), which costs S * F * D
    multiplications.
    """
    num_latents, width = W_dec.shape
    gram = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, num_latents, _BLOCK_LATENTS):
        unit = unit_rows(W_dec[start : start + _BLOCK_LATENTS]).cpu().double()
        gram += unit.T @ unit
    square_norm = float(gram.square().sum())
    nearest = _nearest_cosines(W_dec, num_sampled, seed) if num_latents > 1 else torch.zeros(1)
    pairs = num_latents * (num_latents - 1)
    trace = float(gram.trace())
    return DecoderCollapse(
        nfm_norm=sqrt(square_norm),
        mean_square_cosine=(square_norm - trace) / pairs if pairs else 0.0,
        mean_square_cosine_of_random=1 / width,
        effective_dimensions=trace**2 / square_norm if square_norm else 0.0,
        nearest_cosine=float(nearest.double().mean()),
        nearest_cosine_quantiles={
            str(q): float(torch.quantile(nearest, q, interpolation="nearest")) for q in NEAREST_QUANTILES
        },
        same_direction_share=float((nearest > SAME_DIRECTION).double().mean()),
        num_sampled=len(nearest),
    )


def block_latents(num_others: int) -> int:
    """How many latents are compared with ``num_others`` at a time: their cosines take 64 MiB at most."""
    return max(1, min(_BLOCK_LATENTS, _BLOCK_COSINES // num_others))


def sample_of(num_latents: int, num_sampled: int, seed: int) -> Tensor:
    """``num_sampled`` latents drawn without replacement, or all of them: int64 [S], ascending."""
    if num_sampled >= num_latents:
        return torch.arange(num_latents)
    order = torch.randperm(num_latents, generator=torch.Generator().manual_seed(seed))
    return order[:num_sampled].sort().values


def _nearest_cosines(W_dec: Tensor, num_sampled: int, seed: int) -> Tensor:
    """The cosine of each sampled latent with its nearest other: float32 [S]."""
    sample = sample_of(len(W_dec), num_sampled, seed).to(W_dec.device)
    norms = torch.linalg.vector_norm(W_dec, dim=1).clamp_min(1e-30)
    blocks = torch.split(sample, block_latents(len(W_dec)))
    return torch.cat([nearest_others(W_dec, norms, block)[0].cpu() for block in blocks])
