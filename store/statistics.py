"""Statistics of one hook over all training rows, from the rows as they are stored.

Sums are float64, one partial sum per shard in storage order, added in order of the shards: the bytes do not
depend on batch sizes or interruptions. Quantiles of the norms are exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class HookStatistics:
    """Over all training rows x [D] (raw) of one hook."""

    mean: NDArray[np.float64]  # [D], mean of x
    second_moment: NDArray[np.float64]  # [D], mean of x * x
    mean_square_norm: float  # mean of |x|^2
    norm_quantiles: dict[
        str, float
    ]  # of the stored norms (L2 norm of the centered row), by level: "0.5" is the median
    rows: int


def exact_quantiles(blocks: Callable[[], Iterator[NDArray[np.float32]]], rows: int) -> dict[str, float]:
    """Quantiles of non-negative float32 values that need not fit in memory: the value of rank ``level * (rows
    - 1)``.

    Two passes: non-negative float32 sort like their bits, so a histogram of the upper 16 bits finds the group
    of each rank, and one of the lower 16 bits in that group the value itself.

    Args:
        blocks: called for each pass; yields float32 arrays that hold ``rows`` values in all.
        rows: how many values there are.
    """
    if not rows:
        return {}
    upper = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks():
        upper += np.bincount(block.view(np.uint32) >> np.uint32(16), minlength=1 << 16)
    ends = np.cumsum(upper)
    ranks = [round(level * (rows - 1)) for level in QUANTILE_LEVELS]
    groups = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    lower = {group: np.zeros(1 << 16, dtype=np.int64) for group in groups}
    for block in blocks():
        bits = block.view(np.uint32)
        for group, histogram in lower.items():
            inside = bits[(bits >> np.uint32(16)) == group] & np.uint32(0xFFFF)
            histogram += np.bincount(inside, minlength=1 << 16)
    values = {}
    for level, rank, group in zip(QUANTILE_LEVELS, ranks, groups, strict=True):
        below = int(ends[group] - upper[group])
        low = int(np.searchsorted(np.cumsum(lower[group]), rank - below, side="right"))
        values[f"{level:g}"] = float(np.array([(group << 16) | low], dtype=np.uint32).view(np.float32)[0])
    return values
