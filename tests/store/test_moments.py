"""The kernels of finalizing against plain NumPy, bit for bit."""

import numpy as np
import pytest

from saecache.store.encode import encode_rows
from saecache.store.moments import add_moments, gather_records
from saecache.store.records import RecordLayout


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("width", [1, 17, 64])
def test_gather_and_moments_equal_plain_numpy(dtype: str, unit: bool, width: int) -> None:
    rng = np.random.default_rng(0)
    layout = RecordLayout(width, dtype)
    x = (rng.normal(size=(200, width)) * 10).astype(np.float32)
    x[3] = x[3] * 1e-6  # float16 subnormals when stored as they are
    records = np.empty((200, layout.record_bytes), np.uint8)
    encode_rows(x, records, layout, unit)

    positions = rng.permutation(200)[:150]
    rows = np.zeros((150, width), layout.word)
    norm, mean = np.zeros(150, np.float32), np.zeros(150, np.float32)
    gather_records(records, positions, layout, rows, norm, mean)
    stored = layout.words(records)[:, :width]
    assert np.array_equal(rows, stored[positions])
    assert np.array_equal(norm, layout.norm(records)[positions])
    assert np.array_equal(mean, layout.mean(records)[positions])

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


def test_positions_outside_are_a_bug_that_is_caught() -> None:
    layout = RecordLayout(4, "float16")
    records = np.zeros((3, layout.record_bytes), np.uint8)
    row, scalar = np.zeros((1, 4), np.uint16), np.zeros(1, np.float32)
    with pytest.raises(AssertionError):
        gather_records(records, np.array([3]), layout, row, scalar, scalar)
