"""Which rows are attention sinks: those whose norm is far above the median norm of their hook."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from .sharded_array import ShardedArray


def make_sink_filter(
    norms: Sequence[ShardedArray], medians: Sequence[float], ratio: float
) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]]:
    """A function that tells which of some row numbers are attention sinks at none of several hooks.

    Args:
        norms: float32 [N], the norms of the rows at each hook.
        medians: the median training norm at each.
        ratio: a row above this multiple of a median is a sink.

    Raises:
        UsageError: ``ratio`` is no positive number.
    """
    if not isinstance(ratio, int | float | np.number):
        raise UsageError(f"sink_ratio: expected a number, got {ratio!r}")
    if not ratio > 0:
        raise UsageError(f"sink_ratio must be positive, got {ratio}")
    limits = [np.float32(ratio * median) for median in medians]

    def keep(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = np.ones(len(numbers), dtype=np.bool_)
        for norm, limit in zip(norms, limits, strict=True):
            kept &= norm.gather(numbers) <= limit
        return kept

    return keep
