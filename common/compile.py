"""Compile loops with Numba on first use, and keep the code on disk for the next process."""

from collections.abc import Callable, Set
from typing import Any

import numba

Loop = Callable[..., Any]


def compile_loop(function: Loop, fastmath: Set[str] = frozenset()) -> Loop:
    """Compile a loop over numpy arrays, which then runs without the interpreter lock.

    It never raises: division by zero gives infinity, as in numpy, which permits vector instructions. Where no
    folder can be written to, the code is not kept, and every process compiles it again.

    Args:
        fastmath: LLVM's flags for floating point that hold in it.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        loop: Loop = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder to keep the compiled code in
        loop = numba.njit(**options)(function)
    return loop
