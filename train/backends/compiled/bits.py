"""Order statistics of floats, computed with integer keys that order as the floats do.

Integer loops become vector instructions without permission to reorder floating-point sums, and a NaN cannot
go unnoticed. A comparison gives a mask of 64 keys: a loop over its set bits runs once per key that passes,
while a loop over the keys would wait for each comparison.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic, overload
from torch import Tensor

from .compile import compiled

LOWEST = np.int32(-(2**31))  # below the key of every float
MAGNITUDE = np.int32(0x7FFFFFFF)

MASK_KEYS = 64  # keys that are compared at once
_WORD = ir.IntType(32)
_KEYS = ir.VectorType(_WORD, MASK_KEYS)
_MASK = ir.IntType(MASK_KEYS)


@intrinsic  # type: ignore[untyped-decorator]
def _float_bits(typing_context: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), code


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bfloat16_bits(typing_context: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return numba.types.float32(numba.types.uint16), code


@compiled
def bfloat16_bits(value: Any) -> Any:
    """The bits, uint16, of a float32 rounded towards zero to a bfloat16."""
    return np.uint16(np.uint32(_float_bits(value)) >> np.uint32(16))


def as_float(score: Any) -> Any:
    """The float32 value of a score, which is stored as a float32 or as the bits of a bfloat16 in a uint16."""
    raise NotImplementedError("as_float works only inside compiled loops")


@overload(as_float)  # type: ignore[untyped-decorator]
def _as_float(score: Any) -> Any:
    def widened(score: Any) -> Any:
        return _float_of_bfloat16_bits(score)

    def unchanged(score: Any) -> Any:
        return score

    return widened if score == numba.types.uint16 else unchanged


@compiled
def key(value: Any) -> Any:
    """The key of a float32, an int32; keys order as ``<`` does, and -0.0 and 0.0 have the same."""
    bits = _float_bits(value + np.float32(0))
    return bits ^ ((bits >> np.int32(31)) & MAGNITUDE)


@compiled
def keys_of(values: Any) -> Any:
    """The :func:`key` of each of ``values``, float32 [n]: int32 [n]."""
    keys = np.empty(values.shape[0], np.int32)
    for i in range(values.shape[0]):
        keys[i] = key(values[i])
    return keys


@compiled
def float_of_key(ordered: Any) -> Any:
    """The float32 that has this :func:`key`."""
    return _float_of_bits(ordered ^ ((ordered >> np.int32(31)) & MAGNITUDE))


@compiled
def kth_key(keys: Any, count: int, k: int) -> Any:
    """The k-th largest of the first ``count`` of ``keys`` (int32), or a lower key that exactly k reach.

    Bisection over the 32 bits: each step counts the keys that reach a candidate, so the time does not depend
    on their order.
    """
    sign = np.uint32(0x80000000)
    found = np.uint32(0)  # bits of the answer, in the order of unsigned integers
    for bit in range(31, -1, -1):
        candidate = np.uint32(found | (np.uint32(1) << np.uint32(bit)))
        least = np.int32(candidate ^ sign)
        reached = np.int32(0)
        for i in range(count):
            reached = np.int32(reached + (keys[i] >= least))
        if reached >= k:
            found = candidate
            if reached == k:
                break
    return np.int32(found ^ sign)


@intrinsic  # type: ignore[untyped-decorator]
def at_least(typing_context: Any, keys: Any, least: Any) -> Any:
    """A mask, uint64, whose bit j is set if ``keys[j]`` >= ``least`` (or ``least[j]``).

    ``keys`` is a contiguous int32 [64 or more]; ``least`` is an int32 or such an array. The lengths are not
    checked.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ours = _load(context, builder, signature.args[0], arguments[0])
        if isinstance(signature.args[1], numba.types.Array):
            bounds = _load(context, builder, signature.args[1], arguments[1])
        else:
            one = builder.insert_element(
                ir.Constant(_KEYS, ir.Undefined), arguments[1], ir.Constant(_WORD, 0)
            )
            every = ir.Constant(ir.VectorType(_WORD, MASK_KEYS), [0] * MASK_KEYS)
            bounds = builder.shuffle_vector(one, ir.Constant(_KEYS, ir.Undefined), every)
        return builder.bitcast(builder.icmp_signed(">=", ours, bounds), _MASK)

    bound = least if isinstance(least, numba.types.Array) else numba.types.int32
    return numba.types.uint64(keys, bound), code


def _load(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.load(builder.bitcast(data, _KEYS.as_pointer()), align=4)


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing_context: Any, mask: Any) -> Any:
    """The number, int64, of the lowest set bit of ``mask`` (uint64), which must not be 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.types.int64(numba.types.uint64), code


@intrinsic  # type: ignore[untyped-decorator]
def without_lowest(typing_context: Any, mask: Any) -> Any:
    """``mask`` (uint64, not 0) with its lowest bit cleared."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(arguments[0], builder.sub(arguments[0], ir.Constant(_MASK, 1)))

    return numba.types.uint64(numba.types.uint64), code


def kth_largest(values: Tensor, k: int) -> float:
    """The ``k``-th largest of ``values``, float32 of any shape without NaN."""
    flat = values.detach().reshape(-1)
    return float(_kth(flat.numpy(), k))


def mask_of_largest(values: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest of ``values`` [n]; ties go to the first: bool [n]."""
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    mask = torch.empty(values.numel(), dtype=torch.bool)
    _mark_largest(values.numpy(), count, mask.numpy())
    return mask


@compiled
def _kth(values: Any, k: int) -> Any:
    keys = keys_of(values)
    least = kth_key(keys, keys.shape[0], k)
    smallest = np.int32(2**31 - 1)
    for i in range(keys.shape[0]):  # kth_key may be lower than the k-th largest
        if keys[i] >= least:
            smallest = min(smallest, keys[i])
    return float_of_key(smallest)


@compiled
def _mark_largest(values: Any, count: int, mask: Any) -> None:
    keys = keys_of(values)
    least = kth_key(keys, keys.shape[0], count)
    above = 0
    for i in range(keys.shape[0]):
        above += keys[i] > least
    equal_left = count - above
    for i in range(keys.shape[0]):
        mask[i] = keys[i] > least or (keys[i] == least and equal_left > 0)
        equal_left -= keys[i] == least
