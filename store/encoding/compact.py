"""Rows in the compact number types, ``bfloat16`` and ``int8``, and back to float32.

bfloat16 is the upper half of a float32, rounded to nearest, ties to even. An int8 row is round(127 x / m),
ties to even, with m the largest magnitude of the row; its scale is m / 127, so that x is about value * scale.
A row below :data:`SMALLEST` everywhere is zeros with scale 0.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

SMALLEST = np.float32(2.0**-100)  # 127 / m is still a float32

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


def encode_words(
    x: NDArray[np.float32], dtype: str, words: NDArray[Any], scale: NDArray[np.float32] | None
) -> NDArray[np.bool_]:
    """Fill ``words`` [n, >= D] with rows float32 [n, D] rounded to ``dtype``, and ``scale`` [n] for int8.

    Returns:
        bool [n]: rows with values that are no finite numbers of that type.
    """
    bad = np.empty(len(x), np.bool_)
    width = x.shape[1]
    if dtype == "bfloat16":
        _encode_brain(x.view(np.uint32), words, bad)
    elif dtype == "int8":
        assert scale is not None
        _encode_byte(x, words, scale, bad)
    else:
        with np.errstate(over="ignore"):
            rounded = x.astype(dtype)
        words[:, :width] = rounded.view(words.dtype)
        bad[:] = ~np.isfinite(rounded).all(axis=1)
    return bad


def decode_words(words: NDArray[Any], dtype: str, scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Stored rows [n, D], as words or as numbers, as float32 [n, D]."""
    if dtype == "bfloat16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "int8":
        assert scale is not None
        rows: NDArray[np.float32] = words.view(np.int8).astype(np.float32)
        rows *= scale[:, None]
        return rows
    return words.view(dtype).astype(np.float32)


def as_moments_need(words: NDArray[Any], dtype: str, scale: NDArray[np.float32]) -> NDArray[Any]:
    """Stored rows as words of float16 or float32, which is what ``moments.py`` adds up."""
    if dtype in ("float16", "float32"):
        return words
    return decode_words(words, dtype, scale).view(np.uint32)


@_jit
def _encode_brain(bits, target, bad):  # type: ignore[no-untyped-def]
    for r in range(bits.shape[0]):
        row, out = bits[r], target[r]
        largest = np.uint32(0)
        for j in range(bits.shape[1]):
            value = row[j]
            odd = np.uint32(np.uint32(value >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint32(np.uint32(value + np.uint32(0x7FFF) + odd) >> np.uint32(16))
            magnitude = np.uint32(value & np.uint32(0x7FFFFFFF))
            largest = max(largest, np.uint32(rounded & np.uint32(0x7FFF)))
            largest = np.uint32(0x7F80) if magnitude >= np.uint32(0x7F800000) else largest
            out[j] = np.uint16(rounded)
        bad[r] = largest >= np.uint32(0x7F80)


@_jit
def _encode_byte(x, target, scale, bad):  # type: ignore[no-untyped-def]
    for r in range(x.shape[0]):
        row, out = x[r], target[r]
        largest = np.float32(0)
        finite = True
        for j in range(x.shape[1]):
            largest = max(largest, np.abs(row[j]))
            finite = finite and np.isfinite(row[j])
        bad[r] = not finite
        if not finite or largest < SMALLEST:
            scale[r] = np.float32(0)
            for j in range(x.shape[1]):
                out[j] = np.uint8(0)
            continue
        scale[r] = largest / np.float32(127)
        factor = np.float32(127) / largest
        for j in range(x.shape[1]):
            out[j] = np.uint8(np.int8(np.rint(row[j] * factor)))
