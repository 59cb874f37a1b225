"""Kernels that move rows: from the spill into sorted order, and from chunks into batches."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .half import widen
from .records import RecordLayout

_jit = numba.njit(nogil=True, cache=True)


def scatter_records(records: NDArray[np.uint8], ranks: NDArray[np.int64], target: NDArray[np.uint8]) -> None:
    """``target[ranks[i]] = records[i]`` for every rank inside the target; the others are left out.

    Args:
        records: uint8 [n, record_bytes], C-contiguous; record_bytes is a multiple of 8.
        ranks: int64 [n], any.
        target: uint8 [m, record_bytes], C-contiguous.
    """
    assert records.shape[1] == target.shape[1] and len(ranks) == len(records)
    _scatter(records.view(np.uint64), ranks, target.view(np.uint64))


def split_records(
    records: NDArray[np.uint8],
    layout: RecordLayout,
    rows: NDArray[Any],
    norm: NDArray[np.float32],
    mean: NDArray[np.float32],
) -> None:
    """Take records [n, record_bytes] apart into ``rows`` words [n, D], ``norm`` [n] and ``mean`` [n]."""
    rows[:] = layout.words(records)[:, : rows.shape[1]]
    norm[:], mean[:] = layout.norm(records), layout.mean(records)


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
def _scatter(records, ranks, target):  # type: ignore[no-untyped-def]
    width, size = records.shape[1], target.shape[0]
    for i in range(records.shape[0]):
        rank = ranks[i]
        if 0 <= rank < size:
            source, place = records[i], target[rank]
            for j in range(width):
                place[j] = source[j]


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
