"""How many latents are active on a row, how often each fires, and the curves that are drawn of that.

Legend: B rows of a block, F latents, G groups of documents, R draws of the bootstrap.
"""

from math import ceil, log10

import numpy as np
import torch
from torch import Tensor

from ...distributed.group import Group
from ...train import Pairs
from ..results import CodeMetrics, DensityCurve, Histogram
from ..tree_sum import TreeSum
from .bootstrap import Floats, draw_weights, intervals_of, sum_by_group

L0_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSE = 0.1  # a latent that fires on more than this share of the rows counts as dense
CURVE_POINTS = 200
BINS_PER_DECADE = 4
MAX_L0_BINS = 60


class CodeStream:
    """L0, L1 and how often each latent fires, from sparse codes. It keeps a few numbers per latent and per
    group of documents.
    """

    def __init__(self, num_latents: int, num_groups: int = 1, *, first_block: int = 0) -> None:
        self.num_rows = 0
        self.num_groups = num_groups
        self.fires_F = torch.zeros(num_latents, dtype=torch.int64)
        """Rows on which each latent is active: not 0."""
        self.rows_by_l0 = torch.zeros(num_latents + 1, dtype=torch.int64)
        """How many rows have 0, 1, ..., F latents that are not 0."""
        self._sums = TreeSum(first_block)  # [G, 3]: rows, L0, L1

    def update(self, codes: Pairs, group_B: Tensor | None = None) -> None:
        """Add the codes of a block of rows. ``group_B``: as in :meth:`ReconstructionStream.update`."""
        num_latents = self.fires_F.numel()
        if codes.num_latents != num_latents:
            raise ValueError(f"expected codes over {num_latents} latents, got {codes.num_latents}")
        rows, latent, value = codes.rows().cpu(), codes.latent.cpu(), codes.value.float().cpu()
        active = value != 0
        l0_B = torch.bincount(rows[active], minlength=codes.num_rows)
        self.rows_by_l0 += torch.bincount(l0_B, minlength=num_latents + 1)
        group = np.zeros(codes.num_rows, dtype=np.int64) if group_B is None else group_B.numpy()
        l1_B = sum_by_group(rows.numpy(), value.abs().double().numpy(), codes.num_rows)
        columns = [sum_by_group(group, v, self.num_groups) for v in (None, l0_B.double().numpy(), l1_B)]
        self._sums.add(torch.from_numpy(np.stack(columns, axis=1)))
        self.fires_F += torch.bincount(latent[active], minlength=num_latents)
        self.num_rows += codes.num_rows

    def collect(self, group: Group, owner: int) -> None:
        """Bring the sums of all processes of ``group``, which share the rows, to process ``owner``."""
        self._sums.collect(group, owner)
        self.fires_F, self.rows_by_l0 = group.sum(self.fires_F), group.sum(self.rows_by_l0)
        self.num_rows = group.add_up(self.num_rows)

    def density(self) -> Tensor:
        """Share of the rows on which each latent fires: float64 [F]."""
        return self.fires_F.double() / max(self.num_rows, 1)

    def result(self, seed: int = 0) -> CodeMetrics:
        """The figures so far, with intervals if there are enough groups of documents.

        Raises:
            ValueError: no rows were added.
        """
        sums = self._sums.total()
        if sums is None:
            raise ValueError("no rows were measured")
        num_latents = self.fires_F.numel()
        counts = self.rows_by_l0.numpy()
        present = np.flatnonzero(counts)
        alive = int((self.fires_F > 0).sum())
        figures = {
            name: float(value[0])
            for name, value in _means(sums.numpy(), np.ones((1, self.num_groups))).items()
        }
        weights = draw_weights(self.num_groups, seed)
        return CodeMetrics(
            l0=figures["l0"],
            l0_quantiles={str(q): quantile_of_counts(counts, q) for q in L0_QUANTILES},
            l0_min=int(present[0]),
            l0_max=int(present[-1]),
            l1=figures["l1"],
            alive=alive,
            dead=num_latents - alive,
            alive_share=alive / num_latents,
            dense_share=float((self.density() > DENSE).double().mean()),
            intervals={} if weights is None else intervals_of(_means(sums.numpy(), weights)),
        )


def _means(sums_G3: Floats, weights_RG: Floats) -> dict[str, Floats]:
    rows, l0, l1 = (weights_RG @ column for column in sums_G3.T)
    return {"l0": l0 / rows, "l1": l1 / rows}


def quantile_of_counts(counts: np.ndarray, q: float) -> int:
    """The smallest v such that a share ``q`` or more of the rows is <= v; ``counts[v]`` rows have value v."""
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, q * cumulative[-1], side="left"))


def density_curve(density_F: Tensor, num_rows: int) -> DensityCurve:
    """Densities of the alive latents by rank, densest first, and their histogram over log10.

    The ranks that are kept are spaced evenly in log, so that both the few dense latents and the long tail are
    drawn; of few latents every rank is kept. The histogram starts at 1/num_rows, the smallest density that
    can be seen.
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
    """Numbers from 1 to ``largest``: all if there are at most ``most``, else about ``most``, even in log."""
    if largest <= most:
        return np.arange(1, largest + 1)
    return np.unique(np.round(np.geomspace(1, largest, most)).astype(np.int64))


def l0_histogram(rows_by_l0: Tensor) -> Histogram:
    """How many rows have how many active latents, in bins of one whole width over the values that occur.

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
