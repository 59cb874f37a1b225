"""Kernels that move rows from chunks into batches."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .half import widen

_jit = numba.njit(nogil=True, cache=True)


def copy_rows(
    source: NDArray[Any], picks: NDArray[np.int64], target: NDArray[Any], places: NDArray[np.int64]
) -> None:
    """``target[places[i]] = source[picks[i]]``, without a copy in between.

    Args:
        source: [n, D], C-contiguous.
        picks: int64 [m], rows of the source.
        target: [k, D], C-contiguous, of the same type.
        places: int64 [m], rows of the target.
    """
    assert source.dtype == target.dtype and source.shape[1:] == target.shape[1:]
    assert picks.size == 0 or (picks.min() >= 0 and picks.max() < len(source))
    assert places.size == 0 or (places.min() >= 0 and places.max() < len(target))
    word = np.dtype(f"u{source.dtype.itemsize}")  # bits are moved, whatever they mean
    _copy(source.view(word), picks, target.view(word), places)


def widen_rows(
    source: NDArray[np.float16],
    picks: NDArray[np.int64],
    target: NDArray[np.float32],
    places: NDArray[np.int64],
) -> None:
    """``target[places[i]] = source[picks[i]]``, float16 to float32, exactly; rows are read from memory once.

    Args:
        source: [n, D], C-contiguous.
        picks: int64 [m], rows of the source.
        target: [k, D], C-contiguous.
        places: int64 [m], rows of the target.
    """
    assert source.dtype == np.float16 and target.dtype == np.float32 and source.shape[1:] == target.shape[1:]
    assert picks.size == 0 or (picks.min() >= 0 and picks.max() < len(source))
    assert places.size == 0 or (places.min() >= 0 and places.max() < len(target))
    _widen(source.view(np.uint16), picks, target.view(np.uint32), places)


@_jit
def _copy(source, picks, target, places):  # type: ignore[no-untyped-def]
    width = source.shape[1]
    for i in range(picks.shape[0]):
        row, place = source[picks[i]], target[places[i]]
        for j in range(width):
            place[j] = row[j]


@_jit
def _widen(source, picks, target, places):  # type: ignore[no-untyped-def]
    for i in range(picks.shape[0]):
        widen(source[picks[i]], target[places[i]])
