"""Raw rows to records on a GPU, in the order of sums of :mod:`.encode`: the same bytes for every row.

Legend as there: m = mean of x, c = x - m, s = L2 norm of c, u = c * (1 / s). A program encodes ``ROWS`` rows
and reads each of them three times (four for int8), from the cache after the first. No product is fused with a
sum; divisions and roots are rounded to nearest.
"""

import torch
import triton.language as tl
from torch import Tensor

from ...common.triton_launch import kernel, launch
from .encode import LANES, SMALLEST_NORM
from .number_types import SMALLEST
from .records import RecordLayout

ROWS_OF_PROGRAM = {"cpu": 64, "cuda": 4}  # on a CPU there is only the interpreter, which likes large blocks
_LANES = tl.constexpr(LANES)
_SMALLEST_NORM = tl.constexpr(float(SMALLEST_NORM))
_SMALLEST = tl.constexpr(float(SMALLEST))
_INFINITY = tl.constexpr(float("inf"))
_ROUNDED = tl.constexpr(1.5 * 2**23)  # x + this has round(x), ties to even, in its lowest bits
_MOST_PADDING = tl.constexpr(16)  # bytes, a power of two: up to 7 behind the numbers, and 4 with int8


@kernel
def _halve(lanes, ROWS: tl.constexpr):
    """Lanes [ROWS, 64] added up, the upper half to the lower half until one is left: [ROWS]."""
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 32)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 16)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 8)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 4)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 2)), axis=1)
    return tl.sum(lanes, axis=1)


@kernel
def _load(place, here):
    """Numbers as float32; bfloat16 come as int16, since Triton's interpreter would misread subnormal ones."""
    if place.dtype.element_ty == tl.int16:
        bits = tl.load(place, mask=here, other=0).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return tl.load(place, mask=here, other=0.0).to(tl.float32)


@kernel
def _finite(x):
    return tl.abs(x) < _INFINITY


@kernel
def _row(x, mean, inverse, UNIT: tl.constexpr):
    """What is stored of a piece of rows [ROWS, LANES]: u, or x itself."""
    if UNIT:
        return (x - mean[:, None]) * inverse[:, None]
    return x


@kernel
def _encode_kernel(
    x, words, columns, zeros, bad, n,
    D: tl.constexpr, RECORD: tl.constexpr, TYPE: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = r < n
    lane = tl.arange(0, _LANES)
    source = x + r[:, None] * D + lane[None, :]

    lanes = tl.zeros((ROWS, _LANES), tl.float32)
    for j in range(0, D, _LANES):
        here = real[:, None] & (j + lane < D)[None, :]
        lanes += _load(source + j, here)
    width = tl.full((ROWS,), D, tl.float32)
    mean = tl.div_rn(_halve(lanes, ROWS), width)

    lanes = tl.zeros((ROWS, _LANES), tl.float32)
    for j in range(0, D, _LANES):
        here = real[:, None] & (j + lane < D)[None, :]
        centered = _load(source + j, here) - mean[:, None]
        centered = tl.where(here, centered, 0.0)
        lanes += centered * centered
    norm = tl.sqrt_rn(_halve(lanes, ROWS))
    norm = tl.where(norm < _SMALLEST_NORM, 0.0, norm)
    inverse = tl.where(norm == 0, 0.0, tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), norm))
    refused = ~(_finite(norm) & _finite(mean))

    scale = tl.zeros((ROWS,), tl.float32)
    factor = tl.zeros((ROWS,), tl.float32)
    if TYPE == "int8":
        largest = tl.zeros((ROWS,), tl.float32)
        infinite = tl.zeros((ROWS,), tl.int32)
        for j in range(0, D, _LANES):
            here = real[:, None] & (j + lane < D)[None, :]
            row = _row(_load(source + j, here), mean, inverse, UNIT)
            fine = _finite(row) | ~here
            infinite = tl.maximum(infinite, tl.max((~fine).to(tl.int32), axis=1))
            largest = tl.maximum(largest, tl.max(tl.where(here & fine, tl.abs(row), 0.0), axis=1))
        refused = refused | (infinite != 0)
        some = (infinite == 0) & (largest >= _SMALLEST)
        most = tl.full((ROWS,), 127.0, tl.float32)
        scale = tl.where(some, tl.div_rn(largest, most), 0.0)
        factor = tl.where(some, tl.div_rn(most, tl.where(some, largest, 1.0)), 0.0)

    infinite = tl.zeros((ROWS,), tl.int32)
    size = words.dtype.element_ty.primitive_bitwidth // 8
    for j in range(0, D, _LANES):
        here = real[:, None] & (j + lane < D)[None, :]
        row = _row(_load(source + j, here), mean, inverse, UNIT)
        place = words + r[:, None] * (RECORD // size) + j + lane[None, :]
        if TYPE == "float16":
            half = row.to(tl.float16)
            infinite = tl.maximum(
                infinite, tl.max((here & ~_finite(half.to(tl.float32))).to(tl.int32), axis=1)
            )
            tl.store(place, half, mask=here)
        elif TYPE == "bfloat16":
            bits = row.to(tl.int32, bitcast=True)
            upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            large = ((upper & 0x7FFF) >= 0x7F80) | ~_finite(row)
            infinite = tl.maximum(infinite, tl.max((here & large).to(tl.int32), axis=1))
            tl.store(place, upper.to(tl.int16), mask=here)
        elif TYPE == "int8":
            whole = tl.where(factor[:, None] == 0, 0.0, row * factor[:, None]) + _ROUNDED
            tl.store(place, whole.to(tl.int32, bitcast=True).to(tl.int8), mask=here)
        else:
            tl.store(place, row, mask=here)
    tl.store(bad + r, (refused | (infinite != 0)).to(tl.int8), mask=real)

    last = columns + (r + 1) * (RECORD // 4)
    tl.store(last - 1, mean, mask=real)
    tl.store(last - 2, norm, mask=real)
    end = RECORD - 8
    if TYPE == "int8":
        tl.store(last - 3, scale, mask=real)
        end = RECORD - 12
    padding = D * size + tl.arange(0, _MOST_PADDING)
    empty = real[:, None] & (padding < end)[None, :]
    tl.store(
        zeros + r[:, None] * RECORD + padding[None, :], tl.zeros((ROWS, _MOST_PADDING), tl.int8), mask=empty
    )


_WORDS = {"float16": torch.float16, "bfloat16": torch.int16, "float32": torch.float32, "int8": torch.int8}


def encode_on_device(x: Tensor, records: Tensor, bad: Tensor, layout: RecordLayout, unit: bool) -> None:
    """As :func:`.encode.encode_rows`, on the device of ``x``.

    Args:
        x: float16, bfloat16 or float32 [n, D].
        records: uint8 [n, record_bytes], contiguous, from a multiple of 8 bytes on; overwritten.
        bad: int8 [n], overwritten: 1 for rows that cannot be stored, else 0.
        layout: of the records.
        unit: store u; otherwise x itself.
    """
    x, rows = x.detach().contiguous(), ROWS_OF_PROGRAM[x.device.type]
    x = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    launch(
        _encode_kernel, (-(-len(x) // rows),),
        x, records.view(_WORDS[layout.dtype]), records.view(torch.float32), records.view(torch.int8), bad,
        len(x), D=layout.d_model, RECORD=layout.record_bytes, TYPE=layout.dtype, UNIT=unit, ROWS=rows,
    )  # fmt: skip
