"""float32 to the number types that rows are stored in, and back.

``float16`` and ``bfloat16`` are rounded to nearest, ties to even, and become float32 again exactly. float16
is rounded by the processor's instruction where it has one, else on the bits: both give the same for every
number, only NaNs may differ in their bits. bfloat16 is the upper half of a float32. An ``int8`` row is
round(127 x / m), ties to even, with m the largest magnitude of the row; its scale is m / 127, so that x is
about value * scale. A row below :data:`SMALLEST` everywhere is zeros with scale 0.
"""

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...common.compile import compile_loop

SMALLEST = np.float32(2.0**-100)  # 127 / m is still a float32


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


def to_moment_words(words: NDArray[Any], dtype: str, scale: NDArray[np.float32]) -> NDArray[Any]:
    """Stored rows as words of float16 or float32, which ``add_moments`` takes."""
    if dtype in ("float16", "float32"):
        return words
    return decode_words(words, dtype, scale).view(np.uint32)


@compile_loop
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


@compile_loop
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


@compile_loop
def widen(source, target):  # type: ignore[no-untyped-def]
    """Fill ``target``, float32 bits in uint32 [D], from ``source``, float16 bits in uint16 [D]."""
    for j in range(source.shape[0]):
        target[j] = _widen_bits(source[j])


@intrinsic  # type: ignore[untyped-decorator]
def _widen_bits(typing_context: Any, bits: Any) -> Any:
    """The bits of a float16 as those of the same float32.

    Exponent and mantissa move into place, which gives the value / 2^112, subnormals included; the factor
    2^112 follows. Inf and NaN then are numbers of at least 2^16, which no finite float16 is, and get their
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


@intrinsic  # type: ignore[untyped-decorator]
def _narrow_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 rounded to float16, by the processor."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return numba.types.uint16(numba.types.float32), code


@compile_loop
def narrow_by_instruction(source, target):  # type: ignore[no-untyped-def]
    """Fill ``target``, float16 bits in uint16 [>= D], from ``source``, float32 [D].

    Returns:
        The largest magnitude in ``target``, as bits: 0x7C00 is Inf, more is NaN.
    """
    largest = np.uint16(0)
    for j in range(source.shape[0]):
        half = _narrow_bits(source[j])
        target[j] = half
        largest = max(largest, np.uint16(half & np.uint16(0x7FFF)))
    return largest


@compile_loop
def narrow_by_bits(source, target):  # type: ignore[no-untyped-def]
    """As :func:`narrow_by_instruction`.

    Below 2^-14 the low bits of |x| + 0.5 are the subnormal float16, rounded by the adder.
    """
    bits, shifted = source.view(np.uint32), np.empty(source.shape[0], np.float32)
    for j in range(source.shape[0]):
        shifted[j] = np.abs(source[j]) + np.float32(0.5)
    shifted_bits = shifted.view(np.uint32)
    largest = np.uint32(0)
    for j in range(bits.shape[0]):
        magnitude = np.uint32(bits[j] & np.uint32(0x7FFFFFFF))
        odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
        normal = np.uint32(np.uint32(magnitude - np.uint32(0x37FFF001) + odd) >> np.uint32(13))
        subnormal = np.uint32(shifted_bits[j] - np.uint32(0x3F000000))
        half = normal if magnitude >= np.uint32(0x38800000) else subnormal
        half = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else half
        half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else half
        largest = max(largest, half)
        sign = np.uint32(np.uint32(bits[j] >> np.uint32(16)) & np.uint32(0x8000))
        target[j] = np.uint16(half | sign)
    return largest


def _processor_narrows() -> bool:
    """Whether the compiled code may use the processor's instruction.

    For other processors, and for one that the environment names (``NUMBA_CPU_NAME``), LLVM would call a
    function that does not exist.
    """
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return False
    return platform.machine() in ("arm64", "aarch64") or bool(binding.get_host_cpu_features().get("f16c"))


narrow = narrow_by_instruction if _processor_narrows() else narrow_by_bits
