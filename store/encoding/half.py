"""float16 to float32 in compiled kernels, exactly, and in a loop that becomes vector instructions."""

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@_jit
def widen(source, target):  # type: ignore[no-untyped-def]
    """Fill ``target``, float32 bits in uint32 [D], from ``source``, float16 bits in uint16 [D]."""
    for j in range(source.shape[0]):
        target[j] = _widened(source[j])


@intrinsic  # type: ignore[untyped-decorator]
def _widened(typing_context: Any, bits: Any) -> Any:
    """Exponent and mantissa move into place, which is the value / 2^112, subnormals included; then the
    factor. Inf and NaN come out as numbers of at least 2^16, where no finite float16 is: they get their
    exponent back.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def number(value: int) -> Any:
            return ir.Constant(ir.IntType(32), value)

        half = builder.zext(arguments[0], ir.IntType(32))
        magnitude = builder.shl(builder.and_(half, number(0x7FFF)), number(13))
        small = builder.bitcast(magnitude, ir.FloatType())
        wide = builder.fmul(small, ir.Constant(ir.FloatType(), 2.0**112))
        wide = builder.bitcast(wide, ir.IntType(32))
        special = builder.icmp_unsigned(">=", wide, number(0x47800000))
        exponent = builder.select(special, number(0x7F800000), number(0))
        sign = builder.shl(builder.and_(half, number(0x8000)), number(16))
        return builder.or_(builder.or_(wide, exponent), sign)

    return numba.types.uint32(numba.types.uint16), code
