"""Float64 moments of stored rows."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ..encoding.half import widen

_ROWS = 4

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


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


@_jit
def _moments_of_half(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    n, width = rows.shape
    wide = np.empty((_ROWS, width), np.float32)
    bits = wide.view(np.uint32)
    for first in range(0, n, _ROWS):
        count = min(_ROWS, n - first)
        for i in range(count):
            widen(rows[first + i], bits[i])
        _add(wide[:count], norm[first:], mean[first:], unit, total, squares)


@_jit
def _moments_of_single(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    for first in range(0, rows.shape[0], _ROWS):
        _add(rows[first : first + _ROWS], norm[first:], mean[first:], unit, total, squares)


@_jit
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


@_jit
def _raw(stored, scale, shift):  # type: ignore[no-untyped-def]
    return np.float64(np.float32(np.float32(stored * scale) + shift))
