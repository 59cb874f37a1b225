"""Raw rows to stored rows: mean, norm, division and rounding in one pass over memory.

Legend: x raw row [D]; m = mean of x; c = x - m; s = L2 norm of c (0 below the smallest normal float32);
u = c * (1 / s), or 0 where s is 0.

All arithmetic is float32 in a fixed order: a sum over D adds up ``LANES`` partial sums, element j going to
lane j mod LANES, and then halves the lanes until one is left. So a row gives the same bytes whatever batch it
comes in. Rounding to float16 is to nearest, ties to even.
"""

import numpy as np
from numpy.typing import NDArray

from ...common.compile import compile_loop
from .number_types import encode_words, narrow
from .records import RecordLayout

LANES = 64
SMALLEST_NORM = np.float32(np.finfo(np.float32).tiny)


def encode_rows(
    x: NDArray[np.float32], records: NDArray[np.uint8], layout: RecordLayout, unit: bool
) -> NDArray[np.bool_]:
    """Fill ``records`` from raw rows.

    Args:
        x: float32 [n, D], C-contiguous.
        records: uint8 [n, record_bytes], C-contiguous, overwritten.
        layout: of the records.
        unit: store u; otherwise x itself. Norm and mean are in the record either way.

    Returns:
        bool [n]: rows that cannot be stored (NaN, Inf, overflow of float32 in the norm or of the stored
        type).
    """
    n = len(x)
    norm, mean = np.empty(n, np.float32), np.empty(n, np.float32)
    bad = np.empty(n, np.bool_)
    words = layout.words(records)
    records[:, layout.row_bytes : -8] = 0
    if layout.dtype == "float16":
        _encode_half(x, words, norm, mean, bad, unit)
    elif layout.dtype == "float32":
        _encode_single(x, words, norm, mean, bad, unit)
    else:
        rows = np.empty(x.shape, np.float32)
        _encode_single(x, rows.view(np.uint32), norm, mean, bad, unit)
        scale = layout.scale(records) if layout.has_scale else None
        bad |= encode_words(rows, layout.dtype, words, scale)
    layout.norm(records)[:] = norm
    layout.mean(records)[:] = mean
    return bad


@compile_loop
def _encode_half(x, words, norm, mean, bad, unit):  # type: ignore[no-untyped-def]
    """float32 [n, D] -> float16 bits in uint16 [n, >= D]."""
    n, d_model = x.shape
    lanes = np.empty(LANES, np.float32)
    row = np.empty(d_model, np.float32)
    for r in range(n):
        norm[r], mean[r] = _standardize(x[r], row, lanes, unit)
        largest = narrow(row, words[r])
        bad[r] = largest >= np.uint32(0x7C00) or not (np.isfinite(norm[r]) and np.isfinite(mean[r]))


@compile_loop
def _encode_single(x, words, norm, mean, bad, unit):  # type: ignore[no-untyped-def]
    """float32 [n, D] -> float32 bits in uint32 [n, >= D]."""
    n, d_model = x.shape
    lanes = np.empty(LANES, np.float32)
    row = np.empty(d_model, np.float32)
    row_bits = row.view(np.uint32)
    for r in range(n):
        norm[r], mean[r] = _standardize(x[r], row, lanes, unit)
        target = words[r]
        for j in range(d_model):
            target[j] = row_bits[j]
        bad[r] = not (np.isfinite(norm[r]) and np.isfinite(mean[r]))


@compile_loop
def _standardize(x, row, lanes, unit):  # type: ignore[no-untyped-def]
    """Fill ``row`` with u (or x), return norm and mean; the loops are shaped for LLVM to vectorize."""
    d_model = x.shape[0]
    whole = d_model - d_model % LANES
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += x[j + lane]
    for lane in range(d_model - whole):
        lanes[lane] += x[whole + lane]
    mean = _halve(lanes) / np.float32(d_model)
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            centered = x[j + lane] - mean
            row[j + lane] = centered
            lanes[lane] += centered * centered
    for lane in range(d_model - whole):
        centered = x[whole + lane] - mean
        row[whole + lane] = centered
        lanes[lane] += centered * centered
    norm = np.float32(np.sqrt(_halve(lanes)))
    if norm < SMALLEST_NORM:
        norm = np.float32(0)
    if unit:
        inverse = np.float32(0) if norm == 0 else np.float32(1) / norm
        for j in range(d_model):
            row[j] = row[j] * inverse
    else:
        for j in range(d_model):
            row[j] = x[j]
    return norm, mean


@compile_loop
def _halve(lanes):  # type: ignore[no-untyped-def]
    width = LANES
    while width > 1:
        width //= 2
        for lane in range(width):
            lanes[lane] += lanes[lane + width]
    return lanes[0]
