"""How many of the known features an SAE has found: the bucket recovery rate and activation fidelity of
"Sampled-SAE", section 4, which the paper leaves as future work.

Legend: N rows, d width, k features, F latents.
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..common.errors import UsageError
from ..common.fvu import FVU
from ..store.reading.reader import ActivationCache
from ..train.sae import SAE
from .results import BucketRecovery, Recovery
from .synthetic import HOOK, GroundTruth, remake_ground_truth

FOUND = 0.7  # a feature counts as found from this |cosine| with its latent on
ENCODED_ROWS = 8192


class HeldoutRecovery(Recovery):
    """:class:`.Recovery`, with the figures of all held-out rows."""

    sae: str
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


def compare_with_features(sae: SAE, truth: GroundTruth, density_F: Tensor, num_rows: int) -> Recovery:
    """Compare the decoder of ``sae`` with the features of a synthetic cache of the same width.

    Args:
        density_F: [F], share of ``num_rows`` rows on which each latent is active.
    """
    density_F = density_F.float().cpu()
    latent_of, similarity = match_latents(truth.directions, sae.W_dec.cpu())
    recovered = similarity >= FOUND
    true, learned = truth.frequency[recovered], density_F[latent_of[recovered]]
    return Recovery(
        overall=_of(torch.ones_like(recovered), recovered, similarity),
        buckets={
            bucket.name: _of(truth.bucket == i, recovered, similarity)
            for i, bucket in enumerate(truth.config.buckets)
        },
        fidelity=correlation(true, learned),
        fidelity_log=correlation(true.log(), learned.clamp_min(1 / num_rows).log()),
    )


def measure_recovery(sae: SAE, cache: ActivationCache, truth: GroundTruth | None = None) -> HeldoutRecovery:
    """Compare ``sae`` with the features of the synthetic ``cache``, on its held-out rows.

    Args:
        truth: the features of the cache; if None they are made again, which takes some seconds.

    Raises:
        UsageError: the cache is not synthetic or has no held-out rows; the SAE is of another width.
    """
    truth, num_rows = truth or remake_ground_truth(cache), cache.num_rows("heldout")
    if sae.cfg.d_model != truth.config.width or num_rows == 0:
        raise UsageError(
            f"SAE {sae.cfg.name} has width {sae.cfg.d_model}, {cache.path} has {truth.config.width} and "
            f"{num_rows} held-out rows: the widths must agree, and there must be such rows"
        )
    density_F, l0, fvu = _on_heldout(sae, cache)
    found = compare_with_features(sae, truth, density_F, num_rows)
    return HeldoutRecovery(**dict(found), sae=sae.cfg.name, l0=l0, fvu=fvu, heldout_rows=num_rows)


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation of two tensors [n]; None where it is not defined."""
    if a.numel() < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
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
