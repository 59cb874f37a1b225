"""Statistics of one hook over all training rows, from the rows as they are stored.

Sums are float64, one partial sum per shard in storage order, added in order of the shards: the bytes do not
depend on batch sizes or interruptions. Quantiles of the norms are exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.compile import compile_loop
from .encoding.number_types import widen

QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_ROWS = 4  # whose moments are added at once


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


def add_moments(
    rows: NDArray[Any],
    norm: NDArray[np.float32],
    mean: NDArray[np.float32],
    unit: bool,
    sums: NDArray[np.float64],
) -> None:
    """Add the raw rows x and x * x to ``sums`` float64 [2, D], row after row.

    x is float32 ``row * norm + mean`` where ``unit``, else the stored row. ``rows`` are words [n, D].
    """
    if rows.dtype.itemsize == 2:
        _moments_of_half(rows, norm, mean, unit, sums[0], sums[1])
    else:
        _moments_of_single(rows.view(np.float32), norm, mean, unit, sums[0], sums[1])


@compile_loop
def _moments_of_half(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    n, width = rows.shape
    wide = np.empty((_ROWS, width), np.float32)
    bits = wide.view(np.uint32)
    for first in range(0, n, _ROWS):
        count = min(_ROWS, n - first)
        for i in range(count):
            widen(rows[first + i], bits[i])
        _add(wide[:count], norm[first:], mean[first:], unit, total, squares)


@compile_loop
def _moments_of_single(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    for first in range(0, rows.shape[0], _ROWS):
        _add(rows[first : first + _ROWS], norm[first:], mean[first:], unit, total, squares)


@compile_loop
def _add(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    """Row after row, but the sums are loaded and stored once for four of them."""
    if rows.shape[0] < _ROWS:
        for i in range(rows.shape[0]):
            scale, shift = (norm[i], mean[i]) if unit else (np.float32(1), np.float32(0))
            for j in range(rows.shape[1]):
                x = _raw(rows[i, j], scale, shift)
                total[j] += x
                squares[j] += x * x
        return
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    one, zero = np.float32(1), np.float32(0)
    scale_a, shift_a = (norm[0], mean[0]) if unit else (one, zero)
    scale_b, shift_b = (norm[1], mean[1]) if unit else (one, zero)
    scale_c, shift_c = (norm[2], mean[2]) if unit else (one, zero)
    scale_d, shift_d = (norm[3], mean[3]) if unit else (one, zero)
    for j in range(rows.shape[1]):
        w, x = _raw(a[j], scale_a, shift_a), _raw(b[j], scale_b, shift_b)
        y, z = _raw(c[j], scale_c, shift_c), _raw(d[j], scale_d, shift_d)
        total[j] = (((total[j] + w) + x) + y) + z
        squares[j] = (((squares[j] + w * w) + x * x) + y * y) + z * z


@compile_loop
def _raw(stored, scale, shift):  # type: ignore[no-untyped-def]
    return np.float64(np.float32(np.float32(stored * scale) + shift))
