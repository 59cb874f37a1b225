"""Rows of a cache are finite numbers: the check of a chunk when it is first read."""

from collections.abc import Callable
from typing import Any

import crc32c as crc32c_library
import numpy as np
from numpy.typing import NDArray

from ..common.errors import CorruptCacheError
from .layout import ArraySpec

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}  # its bits
_NAMED_ROWS = 5
_BLOCK_BYTES = 1 << 18  # the processor's cache still has them when they are looked at


class NotFiniteError(CorruptCacheError):
    """Rows of a cache hold NaN or infinity. Reading again is no help: they were written so."""


def infinity_bits(spec: ArraySpec) -> int | None:
    """The bits of infinity in the number type of an array; None for integers."""
    return _INFINITY.get(spec.bits_of or spec.dtype)


def is_finite(block: NDArray[np.uint8], spec: ArraySpec) -> bool:
    """Whether some numbers of an array, uint8 [bytes], are all finite. Needs no compiler."""
    infinity = infinity_bits(spec)
    if infinity is None:
        return True
    size = np.dtype(spec.dtype).itemsize
    words: NDArray[Any] = block.view(f"<u{size}")
    # the largest bits among positive and among negative numbers: two passes without memory in between
    return bool(words.view(f"<i{size}").max() < infinity and words.max() < 1 << (8 * size - 1) | infinity)


def crc32c_and_finite(
    payload: NDArray[np.uint8],
    spec: ArraySpec,
    is_finite: Callable[[NDArray[np.uint8], ArraySpec], bool] = is_finite,
    value: int = 0,
) -> tuple[int, bool]:
    """The crc32c of numbers of an array, uint8 [bytes], and whether they are all finite. Needs no compiler.

    Args:
        is_finite: :func:`is_finite`, or what does the same faster.
        value: the crc32c of the bytes before.
    """
    finite = True
    for start in range(0, len(payload), _BLOCK_BYTES):
        block = payload[start : start + _BLOCK_BYTES]
        value = crc32c_library.crc32c(block, value, gil_release_mode=1)
        finite = finite and is_finite(block, spec)
    return value, finite


def check_finite(payload: NDArray[np.uint8], spec: ArraySpec, number: int, where: str) -> None:
    """Check that the rows of an inner chunk, padding aside, are finite numbers.

    Args:
        payload: the chunk's bytes, uint8 [chunk_bytes], decoded.
        spec: its array. Arrays of integers pass.
        number: of the chunk in its array.
        where: the shard file, for the message.

    Raises:
        NotFiniteError: with the numbers of the rows.
    """
    infinity, first = infinity_bits(spec), number * spec.chunk_rows
    rows = min(spec.chunk_rows, spec.shape[0] - first)
    stored = payload[: rows * spec.row_bytes]
    if infinity is None or is_finite(stored, spec):
        return
    words = stored.view(f"<u{np.dtype(spec.dtype).itemsize}").reshape(rows, -1)
    magnitudes = words & np.iinfo(words.dtype).max // 2
    bad = (first + np.flatnonzero((magnitudes >= infinity).any(axis=1))).tolist()
    named = ", ".join(map(str, bad[:_NAMED_ROWS]))
    more = f" and {len(bad) - _NAMED_ROWS} more of this chunk" if len(bad) > _NAMED_ROWS else ""
    raise NotFiniteError(
        f"{where}: NaN or infinity in row{'s' * (len(bad) > 1)} {named}{more}; expected finite numbers; "
        "whoever made this cache has to make it again"
    )
