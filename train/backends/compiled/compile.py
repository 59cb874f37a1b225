"""Compile loops with Numba on first use, and keep the code on disk for the next process."""

from collections.abc import Callable
from typing import Any

import numba

Loop = Callable[..., Any]


def compiled(function: Loop) -> Loop:
    """Compile a loop over numpy arrays; multiply-adds may fuse, but sums keep their order.

    The loop runs without the interpreter lock, so that :mod:`..threads` can split it. It never raises:
    division by zero gives infinity, as in numpy, which permits vector instructions. NaN stays NaN.
    """
    return _compile(function, {"contract"})


def compiled_sum(function: Loop) -> Loop:
    """As :func:`compiled`, but sums over a row may be reordered for vector registers.

    The order depends only on the length of the row and on the processor, so it is the same in every call.
    """
    return _compile(function, {"contract", "reassoc"})


def _compile(function: Loop, fastmath: set[str]) -> Loop:
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        loop: Loop = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder to keep the compiled code in
        loop = numba.njit(**options)(function)
    return loop
