"""The loops of the step, compiled."""

from ....common.compile import Loop, compile_loop


def compiled(function: Loop) -> Loop:
    """Compile a loop over numpy arrays; multiply-adds may fuse, but sums keep their order.

    The loop runs without the interpreter lock, so that :mod:`..threads` can split it. NaN stays NaN.
    """
    return compile_loop(function, {"contract"})


def compiled_sum(function: Loop) -> Loop:
    """As :func:`compiled`, but sums over a row may be reordered for vector registers.

    The order depends only on the length of the row and on the processor, so it is the same in every call.
    """
    return compile_loop(function, {"contract", "reassoc"})
