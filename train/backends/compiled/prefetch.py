"""Ask the processor to load a row of a matrix before it is needed.

Pairs refer to rows all over a matrix that is larger than the cache. The hardware detects that a row is read
only after a good part of it; we know the row in advance. This takes a third off the time for rows that come
from main memory.
"""

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

from .compile import compiled

LINE_BYTES = 64


@compiled
def prefetch_row(matrix: Any, row: int) -> None:
    """Start loading ``matrix[row]``; the matrix is [n, D] with contiguous rows."""
    prefetch_columns(matrix, row, 0, matrix.shape[1])


@compiled
def prefetch_some(matrix: Any, index: Any, first: int, last: int) -> None:
    """Start loading ``matrix[index[n]]`` for n in first..last-1."""
    for n in range(first, last):
        prefetch_row(matrix, index[n])


@compiled
def prefetch_columns(matrix: Any, row: int, first: int, last: int) -> None:
    """Start loading ``matrix[row, first:last]``."""
    for first_byte in range(first * matrix.itemsize, last * matrix.itemsize, LINE_BYTES):
        _prefetch(matrix, row, first_byte)


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing_context: Any, matrix: Any, row: Any, first_byte: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        row_bytes = builder.mul(arguments[1], builder.extract_value(array.strides, 0))
        address = builder.add(builder.ptrtoint(array.data, word), builder.add(row_bytes, arguments[2]))
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, *[ir.IntType(32)] * 3])
        function = builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            function = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep_in_outer_caches, data = (ir.Constant(ir.IntType(32), n) for n in (0, 2, 1))
        pointer = builder.inttoptr(address, byte_pointer)
        builder.call(function, [pointer, to_read, keep_in_outer_caches, data])
        return context.get_dummy_value()

    return numba.types.void(matrix, numba.types.int64, numba.types.int64), code
