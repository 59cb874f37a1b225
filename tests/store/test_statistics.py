"""Statistics: exact quantiles without holding the values, and what a cache says of its rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecache.store import open_cache
from saecache.store.statistics import QUANTILE_LEVELS, exact_quantiles


@given(
    st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=200),
    st.integers(1, 50),
)
def test_quantiles_are_exact(values: list[float], block: int) -> None:
    array = np.abs(np.array(values, dtype=np.float32))

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(array), block):
            yield array[start : start + block]

    got = exact_quantiles(blocks, len(array))
    ordered = np.sort(array)
    for level in QUANTILE_LEVELS:
        assert got[f"{level:g}"] == ordered[round(level * (len(array) - 1))]


def test_statistics_describe_the_training_rows(cache_path: Path, source: Any) -> None:
    cache = open_cache(cache_path)
    for hook in cache.hooks:
        statistics = cache.statistics(hook)
        raw = source.raw(hook, cache.token_index()[:]).astype(np.float64)
        assert statistics.rows == len(raw) == len(cache)
        assert np.allclose(statistics.mean, raw.mean(axis=0), rtol=1e-3, atol=1e-3)
        assert np.allclose(statistics.second_moment, (raw**2).mean(axis=0), rtol=1e-3)
        assert statistics.mean_square_norm == pytest.approx((raw**2).sum(axis=1).mean(), rel=1e-3)
        norms = np.sort(np.linalg.norm(raw - raw.mean(axis=1, keepdims=True), axis=1))
        assert statistics.norm_quantiles["0.5"] == pytest.approx(norms[round((len(norms) - 1) / 2)], rel=1e-5)
        assert statistics.norm_quantiles["1"] == pytest.approx(norms[-1], rel=1e-5)
