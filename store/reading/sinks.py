"""Which rows are attention sinks: those whose norm is far above the median norm of their hook."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from .downloads import download_ahead
from .sharded_array import ShardedArray

_COUNTED_ROWS = 1 << 16


@dataclass(frozen=True)
class SinkFilter:
    """Leaves out the rows that are attention sinks at any of several hooks.

    Args:
        norms: float32 [N], the norms of the rows at each hook.
        medians: the median training norm at each.
        ratio: a row above this multiple of a median is a sink.

    Raises:
        UsageError: ``ratio`` is no positive number.
    """

    norms: list[ShardedArray]
    medians: list[float]
    ratio: float

    def __post_init__(self) -> None:
        if not isinstance(self.ratio, int | float | np.number):
            raise UsageError(f"sink_ratio: expected a number, got {self.ratio!r}")
        if not self.ratio > 0:
            raise UsageError(f"sink_ratio must be positive, got {self.ratio}")

    def keep(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the rows with these numbers [n] are no sinks, bool [n]."""
        kept = np.ones(len(numbers), dtype=np.bool_)
        for norm, median in zip(self.norms, self.medians, strict=True):
            kept &= norm.gather(numbers) <= np.float32(self.ratio * median)
        return kept

    def count_kept(self, rows: int) -> int:
        """How many of the first ``rows`` rows are no sinks."""
        chunks = -(-rows // self.norms[0].spec.chunk_rows)
        with download_ahead(self.norms, lambda size: range(-(-chunks // size))):
            return sum(
                int(self.keep(np.arange(start, min(start + _COUNTED_ROWS, rows))).sum())
                for start in range(0, rows, _COUNTED_ROWS)
            )
