"""Calibration: do strong activations have better explanations than weak ones?

Probabilistic TopK, Section 4.3, Figure 5 and Table 2. The correlation is over the points latent × bucket, as
in the paper: over the means of the five buckets it would be near 1 for any SAE.

Legend: L latents, K buckets, R draws.
"""

import numpy as np
from numpy.typing import NDArray

from ..metrics.bootstrap import (
    Floats,
    draw_weights,
    mean_interval,
    percentile_interval,
    sum_by_group,
)
from ..results import Calibration, CalibrationBucket

_LATENTS_AT_ONCE = 1024  # what draw_weights takes


def measure_calibration(score_LK: NDArray[np.float64], seed: int) -> Calibration:
    """The mean score of each bucket, and the correlation of scores with the buckets' percentiles.

    Args:
        score_LK: balanced accuracy; NaN where a latent has no score in a bucket.
    """
    num_buckets = score_LK.shape[1]
    edges = np.linspace(0, 100, num_buckets + 1)
    middle_K = (edges[1:] + edges[:-1]) / 2
    latent, bucket = np.nonzero(np.isfinite(score_LK))
    points = score_LK[latent, bucket]
    buckets = []
    for number in range(num_buckets):
        own = points[bucket == number]
        buckets.append(
            CalibrationBucket(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                mean=float(own.mean()) if len(own) else None,
                interval=mean_interval(own, seed),
                num_latents=len(own),
            )
        )
    used, group = np.unique(latent, return_inverse=True)
    sums = _sums(
        group.reshape(-1) % _LATENTS_AT_ONCE, middle_K[bucket], points, min(len(used), _LATENTS_AT_ONCE)
    )
    weights_RG = draw_weights(sums.shape[1], seed) if len(used) else None
    correlation = float(_correlation(sums.sum(1)[:, None])[0]) if len(points) else float("nan")
    return Calibration(
        buckets=buckets,
        correlation=correlation if np.isfinite(correlation) else None,
        interval=None if weights_RG is None else percentile_interval(_correlation(sums @ weights_RG.T)),
        num_latents=len(used),
    )


def _sums(group_P: NDArray[np.int64], x_P: Floats, y_P: Floats, num_groups: int) -> Floats:
    """Sums of 1, x, y, x², y² and x·y by latent: float64 [6, G]."""
    values = (np.ones_like(x_P), x_P, y_P, x_P * x_P, y_P * y_P, x_P * y_P)
    return np.stack([sum_by_group(group_P, value, num_groups) for value in values])


def _correlation(sums_6R: Floats) -> Floats:
    """Pearson's correlation from weighted sums, float64 [R]; NaN where one side does not vary."""
    n, x, y, xx, yy, xy = sums_6R
    spread_x, spread_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    product = spread_x * spread_y
    varies = (spread_x > 1e-12) & (spread_y > 1e-12)
    result: Floats = np.divide(
        xy / n - x * y / n**2,
        np.sqrt(np.where(varies, product, 1)),
        out=np.full_like(n, np.nan),
        where=varies,
    )
    return result
