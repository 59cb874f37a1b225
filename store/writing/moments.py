"""Float64 moments of stored rows."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ..encoding.half import widen

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
    row = np.empty(width, np.float32)
    bits = row.view(np.uint32)
    for i in range(n):
        widen(rows[i], bits)
        _add(row, norm[i], mean[i], unit, total, squares)


@_jit
def _moments_of_single(rows, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        _add(rows[i], norm[i], mean[i], unit, total, squares)


@_jit
def _add(row, norm, mean, unit, total, squares):  # type: ignore[no-untyped-def]
    if not unit:
        norm, mean = np.float32(1), np.float32(0)
    for j in range(row.shape[0]):
        x = np.float64(np.float32(np.float32(row[j] * norm) + mean))
        total[j] += x
        squares[j] += x * x
