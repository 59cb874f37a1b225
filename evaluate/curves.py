"""What the report draws of a distribution: few numbers, whatever the number of latents and rows."""

from math import ceil, log10

import numpy as np
from torch import Tensor

from .results import DensityCurve, Histogram

CURVE_POINTS = 200
BINS_PER_DECADE = 4
MAX_L0_BINS = 60


def density_curve(density_F: Tensor, num_rows: int) -> DensityCurve:
    """Densities by rank (densest first, alive latents only) and their histogram over log10.

    Ranks are spaced evenly in log, so that the few dense latents and the long tail are both drawn; every rank
    is there when there are few latents. The histogram runs from 1/num_rows, the smallest density that can be
    seen.
    """
    density = np.sort(density_F.numpy())[::-1]
    density = density[density > 0]
    ranks = log_spaced_integers(len(density), CURVE_POINTS)
    num_bins = max(1, ceil(log10(num_rows) * BINS_PER_DECADE))
    lowest = -num_bins / BINS_PER_DECADE
    edges = np.linspace(lowest, 0, num_bins + 1)
    # Rounding of log10 must not push a density of exactly 1, or of 1/num_rows, out of the range.
    counts, _ = np.histogram(np.clip(np.log10(density), lowest, 0), edges)
    return DensityCurve(
        rank=[int(r) for r in ranks],
        density=[float(density[r - 1]) for r in ranks],
        log10_histogram=Histogram(edges=[float(e) for e in edges], counts=[int(c) for c in counts]),
    )


def log_spaced_integers(largest: int, most: int) -> np.ndarray:
    """1, ..., ``largest``: all of them when at most ``most``, else about ``most``, spaced evenly in log."""
    if largest <= most:
        return np.arange(1, largest + 1)
    return np.unique(np.round(np.geomspace(1, largest, most)).astype(np.int64))


def l0_histogram(rows_by_l0: Tensor) -> Histogram:
    """Rows by number of active latents: bins of equal whole width over the values that occur.

    Bin i holds the values v with ``edges[i] <= v < edges[i + 1]``.
    """
    counts = rows_by_l0.numpy()
    present = np.flatnonzero(counts)
    first, last = int(present[0]), int(present[-1])
    width = -(-(last + 1 - first) // MAX_L0_BINS)
    num_bins = -(-(last + 1 - first) // width)
    padded = np.zeros(num_bins * width, dtype=np.int64)
    padded[: last + 1 - first] = counts[first : last + 1]
    return Histogram(
        edges=[float(first + i * width) for i in range(num_bins + 1)],
        counts=[int(c) for c in padded.reshape(num_bins, width).sum(1)],
    )
