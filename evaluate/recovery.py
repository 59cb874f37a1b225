"""How many of the known features an SAE has found: the bucket recovery rate and activation fidelity of
"Sampled-SAE", section 4, which the paper leaves as future work.

Legend: N rows, d width, k features, F latents.
"""

from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..common.errors import UsageError
from ..common.fvu import FVU
from ..store.reading.reader import ActivationCache
from ..train.sae import SAE
from .synthetic import HOOK, GroundTruth, remake_ground_truth

FOUND = 0.7  # a feature counts as found from this |cosine| with its latent on
ENCODED_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class BucketRecovery:
    """How many features of one bucket, or of all buckets, were found."""

    num_features: int
    recovered: float  # share with a matched latent of similarity FOUND or more
    mean_similarity: float


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How well an SAE matches the known features.

    Attributes:
        fidelity: correlation of the frequencies of recovered features with those of their latents, in [-1,
            1]; None if fewer than 2 were recovered, or all are equally frequent.
    """

    sae: str
    overall: BucketRecovery
    buckets: dict[str, BucketRecovery]
    fidelity: float | None
    fidelity_log: float | None  # of the logarithms, where rare features count as much as others
    l0: float
    fvu: float
    heldout_rows: int


def match_latents(directions: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """Assign latents to features so that the sum of |cosines| is largest (Hungarian method).

    It takes absolute values because a feature with a negative coefficient needs a latent of opposite
    direction.

    Args:
        directions: float32 [k, d], rows of norm 1.
        W_dec: float32 [F, d].

    Returns:
        The latent of each feature, int64 [k], and their |cosine|, float32 [k]; -1 and 0 without a latent.
    """
    unit = W_dec / torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min(1e-12)
    similarity = (directions @ unit.T).abs()
    feature, latent = map(torch.from_numpy, linear_sum_assignment(similarity.numpy(), maximize=True))
    latent_of = torch.full((len(directions),), -1, dtype=torch.int64)
    latent_of[feature] = latent
    found = torch.zeros(len(directions))
    found[feature] = similarity[feature, latent]
    return latent_of, found


def measure_recovery(sae: SAE, cache: ActivationCache, truth: GroundTruth | None = None) -> Recovery:
    """Compare ``sae`` with the features of the synthetic ``cache``, on its held-out rows.

    Args:
        truth: the features of the cache; if None they are made again, which takes some seconds.

    Raises:
        UsageError: the cache is not synthetic or has no held-out rows; the SAE is of another width.
    """
    truth = truth or remake_ground_truth(cache)
    if sae.cfg.d_model != truth.config.width or cache.num_rows("heldout") == 0:
        raise UsageError(
            f"SAE {sae.cfg.name} has width {sae.cfg.d_model}, {cache.path} has {truth.config.width} and "
            f"{cache.num_rows('heldout')} held-out rows: the widths must agree, and there must be such rows"
        )
    latent_of, similarity = match_latents(truth.directions, sae.W_dec.cpu())
    recovered = similarity >= FOUND
    density, l0, fvu = _on_heldout(sae, cache)
    buckets = {
        bucket.name: _of(truth.bucket == i, recovered, similarity)
        for i, bucket in enumerate(truth.config.buckets)
    }
    true, learned = truth.frequency[recovered], density[latent_of[recovered]]
    return Recovery(
        sae=sae.cfg.name,
        overall=_of(torch.ones_like(recovered), recovered, similarity),
        buckets=buckets,
        fidelity=correlation(true, learned),
        fidelity_log=correlation(true.log(), learned.clamp_min(1 / cache.num_rows("heldout")).log()),
        l0=l0,
        fvu=fvu,
        heldout_rows=cache.num_rows("heldout"),
    )


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation of two tensors [n]; None where it is not defined."""
    if a.numel() < 2 or float(a.std()) == 0 or float(b.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def _of(members: Tensor, recovered: Tensor, similarity: Tensor) -> BucketRecovery:
    return BucketRecovery(
        num_features=int(members.sum()),
        recovered=float(recovered[members].float().mean()),
        mean_similarity=float(similarity[members].mean()),
    )


def _on_heldout(sae: SAE, cache: ActivationCache) -> tuple[Tensor, float, float]:
    """Share of the held-out rows on which each latent is active [F]; L0; FVU."""
    firing = torch.zeros(sae.cfg.num_latents, dtype=torch.int64)
    fvu = FVU()
    rows = min(ENCODED_ROWS, cache.num_rows("heldout"))
    kind: Any = sae.cfg.normalization["kind"]
    for x in cache.batches(HOOK, rows, split="heldout", normalization=kind):
        codes = sae.encode_sparse(x)
        firing += codes.keep(codes.value != 0).count_per_latent()
        fvu.add(x, sae.decode(codes))
    total = cache.num_rows("heldout")
    return firing / total, float(firing.sum()) / total, fvu.value() or 0.0
