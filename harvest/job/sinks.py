"""Attention sinks: the few tokens whose activations have norms far above all others, and their energy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# A harvest reports sinks when rows above this many median norms carry at least this share of E|x|^2.
REPORTED_RATIO, REPORTED_SHARE = 10.0, 0.1


def centered_norms(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of each row of x [n, D] less its mean, float32 [n]: the norm that caches store."""
    x = x.float()
    norms: torch.Tensor = torch.linalg.vector_norm(x - x.mean(dim=1, keepdim=True), dim=1)
    return norms


def rows_within(
    norms: Mapping[str, torch.Tensor], median_norms: Mapping[str, float], ratio: float
) -> NDArray[np.bool_]:
    """Rows to keep, bool [n]: those within ``ratio`` x the median norm at every hook.

    A row is the same token under every hook, so a sink at one hook is dropped from all. NaN is kept: the
    store refuses it by name.

    Args:
        norms: hook -> norms of its rows, float32 [n].
    """
    keep = torch.stack([~(x > ratio * median_norms[hook]).cpu() for hook, x in norms.items()]).all(dim=0)
    kept: NDArray[np.bool_] = keep.numpy()
    return kept


@dataclass
class SinkEnergy:
    """Sums over the rows of one hook: of |x|^2 (x less its mean), and of the part that sinks carry."""

    rows: int = 0
    total: float = 0.0
    sinks: int = 0
    carried: float = 0.0

    def add(self, norms: torch.Tensor, median: float) -> None:
        """Count rows with these norms, float32 [n]."""
        squares = norms.double().square() if norms.device.type != "mps" else norms.square()
        large = norms > REPORTED_RATIO * median
        self.rows += len(norms)
        self.total += float(squares.sum())
        self.sinks += int(large.sum())
        self.carried += float(squares[large].sum())

    def merge(self, other: "SinkEnergy") -> None:
        """Add the sums of other rows."""
        self.rows += other.rows
        self.total += other.total
        self.sinks += other.sinks
        self.carried += other.carried

    def describe(self, hook: str) -> str | None:
        """One sentence when sinks carry much, with the setting that leaves them out; else None."""
        if not self.sinks or self.carried < REPORTED_SHARE * self.total:
            return None
        return (
            f"warning: hook {hook}: {self.sinks:,} of {self.rows:,} rows are attention sinks (norms above "
            f"{REPORTED_RATIO:g} x the median) and carry {self.carried / self.total:.0%} of E|x|^2, so they "
            f"dominate losses on raw rows; --set selection.sink_ratio={REPORTED_RATIO:g} leaves them out at "
            "harvest, sink_ratio in a training configuration at reading"
        )
