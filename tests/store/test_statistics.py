"""Statistics: exact quantiles without holding the values, and what a cache says of its rows."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecache.store.encoding.encode import encode_rows
from saecache.store.encoding.records import RecordLayout
from saecache.store.encoding.stored_rows import StoredRows
from saecache.store.statistics import QUANTILE_LEVELS, add_moments, exact_quantiles


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


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("width", [1, 17, 64])
def test_rows_in_place_and_moments_equal_plain_numpy(dtype: str, unit: bool, width: int) -> None:
    rng = np.random.default_rng(0)
    layout = RecordLayout(width, dtype)
    x = (rng.normal(size=(200, width)) * 10).astype(np.float32)
    x[3] = x[3] * 1e-6  # float16 subnormals when stored as they are
    records = np.empty((200, layout.record_bytes), np.uint8)
    encode_rows(x, records, layout, unit)

    ranks = rng.permutation(250)[:200]  # some beyond the target, some places of the target left as they are
    target = StoredRows.empty(layout, 180)
    for column in (target.words, target.norm, target.mean, target.scale):
        column[:] = 7
    target.place(records, np.arange(len(records)), ranks)
    inside = ranks < 180
    numbers = layout.words(records)[:, :width]
    columns = [(target.words, numbers), (target.norm, layout.norm(records))]
    columns.append((target.mean, layout.mean(records)))
    if layout.has_scale:
        columns.append((target.scale, layout.scale(records)))
    for column, values in columns:
        expected_column = np.full_like(column, 7)
        expected_column[ranks[inside]] = values[inside]
        assert np.array_equal(column, expected_column)
    if layout.has_scale:
        return

    stored = StoredRows.empty(layout, 200)
    stored.place(records, np.arange(200), np.arange(200))
    rows, norm, mean = stored.words, stored.norm, stored.mean
    sums = np.ones((2, width))
    add_moments(rows, norm, mean, unit, sums)
    raw = rows.view(dtype).astype(np.float32)
    if unit:
        raw = raw * norm[:, None] + mean[:, None]
    expected = np.ones((2, width))
    for row in raw.astype(np.float64):  # one after the other: the order is part of the result
        expected += row, row * row
    assert np.array_equal(sums, expected)


def test_every_float16_is_widened_exactly() -> None:
    half = np.arange(0x7C00, dtype=np.uint16)
    bits = np.concatenate([half, half | 0x8000])
    sums = np.zeros((2, len(bits)))
    add_moments(bits[None], np.ones(1, np.float32), np.zeros(1, np.float32), False, sums)
    assert np.array_equal(sums[0], bits.view(np.float16).astype(np.float64))
