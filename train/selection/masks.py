"""Comparisons of a whole chunk at once: 64 keys against a bound, one bit each.

A loop that stores what passes, one key after the other, waits for the comparison each time; with a mask it
runs once for each key that does.
"""

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

WIDTH = 64  # keys of a mask

_WORD = ir.IntType(32)
_KEYS = ir.VectorType(_WORD, WIDTH)
_MASK = ir.IntType(WIDTH)


@intrinsic  # type: ignore[untyped-decorator]
def at_least(typing_context: Any, keys: Any, least: Any) -> Any:
    """uint64: bit j says whether ``keys[j]`` (int32 [64 or more], contiguous) reaches ``least``, an int32 or
    one for each key (int32 [64 or more], contiguous). Nothing checks the lengths.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ours = _load(context, builder, signature.args[0], arguments[0])
        if isinstance(signature.args[1], numba.types.Array):
            bounds = _load(context, builder, signature.args[1], arguments[1])
        else:
            one = builder.insert_element(
                ir.Constant(_KEYS, ir.Undefined), arguments[1], ir.Constant(_WORD, 0)
            )
            every = ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)
            bounds = builder.shuffle_vector(one, ir.Constant(_KEYS, ir.Undefined), every)
        return builder.bitcast(builder.icmp_signed(">=", ours, bounds), _MASK)

    bound = least if isinstance(least, numba.types.Array) else numba.types.int32
    return numba.types.uint64(keys, bound), code


def _load(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.load(builder.bitcast(data, _KEYS.as_pointer()), align=4)


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing_context: Any, mask: Any) -> Any:
    """int64: the number of the lowest bit of ``mask`` (uint64) that is set; one must be."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.types.int64(numba.types.uint64), code


@intrinsic  # type: ignore[untyped-decorator]
def without_lowest(typing_context: Any, mask: Any) -> Any:
    """``mask`` (uint64, not 0) with its lowest bit cleared."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(arguments[0], builder.sub(arguments[0], ir.Constant(_MASK, 1)))

    return numba.types.uint64(numba.types.uint64), code
