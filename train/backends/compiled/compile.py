"""How the compiled loops are compiled: Numba, on first use, kept on disk for the next process."""

from collections.abc import Callable
from typing import Any

import numba

Loop = Callable[..., Any]


def compiled(function: Loop) -> Loop:
    """Compile a loop over numpy arrays; multiply-adds may fuse, sums keep their order.

    The loop runs without the interpreter lock, so that :mod:`.threads` can split it. It never raises:
    division by zero gives infinity, as in numpy, which lets such loops use vector instructions. NaN stays
    NaN.
    """
    return _compile(function, {"contract"})


def compiled_sum(function: Loop) -> Loop:
    """As :func:`compiled`, and sums over a row may be added up in the order that suits vector registers.

    The order is the same on every call: it depends on the length of the row and on the processor, on nothing
        else.
    """
    return _compile(function, {"contract", "reassoc"})


def _compile(function: Loop, fastmath: set[str]) -> Loop:
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        loop: Loop = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder to keep the compiled code in
        loop = numba.njit(**options)(function)
    return loop
