"""Confidence intervals by bootstrap over documents.

Rows of one document resemble each other, so whole documents are drawn with replacement, never single rows. A
stream keeps its sums by group of documents. A figure of one draw is the same function of the weighted sums as
the figure itself, so no row is kept and none is read twice. Efron 1979; clusters: Davison & Hinkley 1997,
3.8.

Legend: G groups of documents, R draws, N rows.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

MAX_GROUPS = 1024  # more documents than this share groups, which keeps memory bounded and the interval valid
MIN_GROUPS = 10  # fewer say too little of how documents differ
DRAWS = 1000
LEVEL = 0.95


def group_documents(document_N: NDArray[np.integer]) -> tuple[NDArray[np.int64], int]:
    """Number the documents of N rows, with at most :data:`MAX_GROUPS` groups.

    Documents are dealt out to the groups in turn, in the order of their numbers.

    Returns:
        The group of each row, int64 [N], from 0; and the number of groups.
    """
    distinct, number = np.unique(document_N, return_inverse=True)
    return number.reshape(-1) % MAX_GROUPS, min(len(distinct), MAX_GROUPS)


def draw_weights(num_groups: int, seed: int) -> Floats | None:
    """How often each group is drawn in each of :data:`DRAWS` draws: float64 [R, G], rows sum to G.

    Returns:
        None if there are fewer than :data:`MIN_GROUPS` groups.
    """
    if num_groups < MIN_GROUPS:
        return None
    random = np.random.default_rng(seed)
    return random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=DRAWS).astype(np.float64)


def percentile_interval(values_R: NDArray[np.floating]) -> Interval | None:
    """The central :data:`LEVEL` of the draws' values; None if a draw has no finite value."""
    if len(values_R) == 0 or not np.isfinite(values_R).all():
        return None
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sum_by_group(
    group_N: NDArray[np.integer], value_N: NDArray[np.floating] | None, num_groups: int
) -> Floats:
    """Add up values by their group, or count them if there are none: float64 [G]."""
    sums: Floats = np.bincount(group_N, value_N, num_groups).astype(np.float64)
    return sums


def intervals_of(values: Mapping[str, NDArray[np.floating]]) -> dict[str, Interval]:
    """The intervals of several figures, each given by its values in the draws; those that have none are left
    out.
    """
    found = {name: percentile_interval(draws) for name, draws in values.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def mean_interval(values_N: NDArray[np.floating], seed: int) -> Interval | None:
    """The interval of the mean of N independent values; None of fewer than :data:`MIN_GROUPS`."""
    group, num_groups = group_documents(np.arange(len(values_N)))
    weights_RG = draw_weights(num_groups, seed)
    if weights_RG is None:
        return None
    sums, counts = (sum_by_group(group, value_N, num_groups) for value_N in (values_N, None))
    return percentile_interval(weights_RG @ sums / (weights_RG @ counts))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """``numerator / denominator``, elementwise; NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
