"""The crc32c of some numbers, and whether all of them are finite, in one pass over memory.

A crc is the remainder of a polynomial over GF(2), and carry-less multiplication computes it: each 128 bits of
a register are multiplied by x^D mod P, which moves them D bits ahead, onto the bits that lie there (Gopal et
al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009). The same loop
keeps the largest magnitude that it saw. Both together take as long as it takes to read the memory.

Where the processor has no such instruction, the crc32c library reads each block, and then a compiled loop,
before the processor's cache has lost it.
"""

from typing import Any

import crc32c as crc32c_library
import numba
import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...common.compile import compile_loop
from .. import finite
from ..finite import infinity_bits
from ..layout import ArraySpec

_POLYNOMIAL = 0x11EDC6F41
_REGISTERS = 4  # folded side by side, because a multiplication takes some cycles
_FROM_ZERO = 0xFFFFFFFF  # a crc32c whose register, before its bits are turned over at the end, is 0


def crc32c_and_finite(payload: NDArray[np.uint8], spec: ArraySpec) -> tuple[int, bool]:
    """As :func:`..finite.crc32c_and_finite`, in one pass."""
    infinity = infinity_bits(spec)
    if infinity is None:
        return crc32c(payload), True
    folded = len(payload) - len(payload) % _STEP_BYTES if _STEP_BYTES else 0
    if not folded:
        return finite.crc32c_and_finite(payload, spec, is_finite)
    value, largest = _fold_all(payload[:folded].view(f"<u{np.dtype(spec.dtype).itemsize}"))
    if largest < infinity:
        return finite.crc32c_and_finite(payload[folded:], spec, is_finite, value)
    return crc32c_library.crc32c(payload[folded:], value), False


def crc32c(payload: NDArray[np.uint8]) -> int:
    """The crc32c of uint8 [bytes]."""
    folded = len(payload) - len(payload) % _STEP_BYTES if _STEP_BYTES else 0
    value = _fold_all(payload[:folded])[0] if folded else 0
    found: int = crc32c_library.crc32c(payload[folded:], value, gil_release_mode=1)
    return found


def _fold_all(words: NDArray[Any]) -> tuple[int, int]:
    """The crc32c of uint8 to uint64 [n], n > 0 of whole steps, and the largest magnitude."""
    remainder = np.zeros(2, np.uint64)
    largest = int(_fold(words, remainder))
    return crc32c_library.crc32c(remainder, _FROM_ZERO), largest


def is_finite(block: NDArray[np.uint8], spec: ArraySpec) -> bool:
    """As :func:`..finite.is_finite`, in one pass."""
    infinity = infinity_bits(spec)
    if infinity is None:
        return True
    words = block.view(f"<u{np.dtype(spec.dtype).itemsize}")
    return int(_largest_magnitude(words, np.iinfo(words.dtype).max // 2)) < infinity


@compile_loop
def _largest_magnitude(words, mask):  # type: ignore[no-untyped-def]
    largest = words.dtype.type(0)
    for j in range(words.shape[0]):
        largest = max(largest, words.dtype.type(words[j] & words.dtype.type(mask)))
    return largest


@compile_loop
def _fold(words, remainder):  # type: ignore[no-untyped-def]
    """Fill ``remainder`` uint64 [2] with 16 bytes whose crc, from 0, is that of all bytes of ``words``.

    Args:
        words: uint8, uint16, uint32 or uint64 [n]; n is a multiple of the registers' bytes, and not 0.

    Returns:
        The largest magnitude: of words without their first bit. 0 for uint8.
    """
    return _fold_words(words, remainder)


@intrinsic  # type: ignore[untyped-decorator]
def _fold_words(typing_context: Any, words: Any, remainder: Any) -> Any:
    word_bits = words.dtype.bitwidth
    looks = word_bits > 8

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, step = REGISTER_BITS // 64, REGISTER_BITS // 8
        word = ir.IntType(word_bits)
        register = ir.VectorType(ir.IntType(64), lanes)
        as_words = ir.VectorType(word, REGISTER_BITS // word_bits)
        source, target = (
            cgutils.create_struct_proxy(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        start = builder.ptrtoint(source.data, ir.IntType(64))
        num_bytes = builder.mul(source.nitems, ir.Constant(ir.IntType(64), word_bits // 8))
        magnitude = ir.Constant(as_words, [(1 << (word_bits - 1)) - 1] * as_words.count)
        kind = f"v{as_words.count}i{word_bits}"
        larger = _declare(builder, f"llvm.umax.{kind}", as_words, as_words, as_words)

        def load(place: Any, number: int) -> Any:
            address = builder.add(builder.add(start, place), ir.Constant(ir.IntType(64), number * step))
            return builder.load(builder.inttoptr(address, register.as_pointer()), align=1)

        def look(value: Any) -> None:
            if looks:
                seen = builder.and_(builder.bitcast(value, as_words), magnitude)
                builder.store(builder.call(larger, [builder.load(largest), seen]), largest)

        zero = ir.Constant(ir.IntType(64), 0)
        largest = cgutils.alloca_once_value(builder, ir.Constant(as_words, [0] * as_words.count))
        registers = []
        for number in range(_REGISTERS):
            value = load(zero, number)
            look(value)
            if number == 0:  # a crc begins with 32 ones
                ones = ir.Constant(register, [0xFFFFFFFF] + [0] * (lanes - 1))
                value = builder.xor(value, ones)
            registers.append(cgutils.alloca_once_value(builder, value))
        whole = ir.Constant(ir.IntType(64), _REGISTERS * step)
        with cgutils.for_range_slice(builder, whole, num_bytes, whole, inc=True) as (place, _):
            for number, kept in enumerate(registers):
                value = load(place, number)
                look(value)
                moved = _move_ahead(builder, builder.load(kept), _REGISTERS * REGISTER_BITS)
                builder.store(builder.xor(moved, value), kept)
        value = builder.load(registers[0])
        for kept in registers[1:]:
            value = builder.xor(_move_ahead(builder, value, REGISTER_BITS), builder.load(kept))
        pairs = []
        for lane in range(0, lanes, 2):
            places = ir.Constant(ir.VectorType(ir.IntType(32), 2), [lane, lane + 1])
            pairs.append(builder.shuffle_vector(value, ir.Constant(register, ir.Undefined), places))
        value = pairs[0]
        for pair in pairs[1:]:
            value = builder.xor(_move_ahead(builder, value, 128), pair)
        builder.store(value, builder.bitcast(target.data, value.type.as_pointer()), align=1)
        if not looks:
            return ir.Constant(word, 0)
        reduce = _declare(builder, f"llvm.vector.reduce.umax.{kind}", word, as_words)
        return builder.call(reduce, [builder.load(largest)])

    return words.dtype(words, remainder), code


def _move_ahead(builder: Any, value: Any, bits: int) -> Any:
    """Each 128 bits of a register multiplied by x^bits mod P.

    The first byte holds the highest powers, and of each byte the lowest bit. In this order a product of two
    halves comes out multiplied by x once more: the factors have one x less.
    """
    lanes = value.type.count
    factors = ir.Constant(value.type, [_power_of_x(bits + 63), _power_of_x(bits - 1)] * (lanes // 2))
    name = "llvm.x86.pclmulqdq" + {2: "", 4: ".256", 8: ".512"}[lanes]
    multiply = _declare(builder, name, value.type, value.type, value.type, ir.IntType(8))
    low, high = (
        builder.call(multiply, [value, factors, ir.Constant(ir.IntType(8), which)]) for which in (0x00, 0x11)
    )
    return builder.xor(low, high)


def _declare(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function that LLVM knows by its name."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _power_of_x(exponent: int) -> int:
    """x^exponent mod P as 64 bits, the highest power last."""
    power = 1
    for _ in range(exponent):
        power <<= 1
        power ^= _POLYNOMIAL if power >> 32 else 0
    return int(f"{power:064b}"[::-1], 2)


def _register_bits() -> int:
    """Bits of the widest registers that the processor multiplies without carry; 0 if it does not.

    Compiled code is not for this processor where the environment names another one (``NUMBA_CPU_NAME``).
    """
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return 0
    features = binding.get_host_cpu_features()
    has = {name for name, there in features.items() if there}
    if numba.config.ENABLE_AVX and "vpclmulqdq" in has:
        if {"avx512f", "avx512bw", "avx512vl"} <= has:
            return 512
        if "avx2" in has:
            return 256
    return 128 if {"pclmul", "sse4.1"} <= has else 0


REGISTER_BITS = _register_bits()
_STEP_BYTES = _REGISTERS * REGISTER_BITS // 8
