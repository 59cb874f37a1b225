"""The kernels of finalizing against plain NumPy, bit for bit."""

import numpy as np
import pytest

from saecache.store.encoding.copying import scatter_records, split_records
from saecache.store.encoding.encode import encode_rows
from saecache.store.encoding.records import RecordLayout
from saecache.store.writing.moments import add_moments


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("width", [1, 17, 64])
def test_scatter_split_and_moments_equal_plain_numpy(dtype: str, unit: bool, width: int) -> None:
    rng = np.random.default_rng(0)
    layout = RecordLayout(width, dtype)
    x = (rng.normal(size=(200, width)) * 10).astype(np.float32)
    x[3] = x[3] * 1e-6  # float16 subnormals when stored as they are
    records = np.empty((200, layout.record_bytes), np.uint8)
    encode_rows(x, records, layout, unit)

    ranks = rng.permutation(250)[:200]  # some beyond the target, some places of the target left as they are
    target = np.full((180, layout.record_bytes), 7, np.uint8)
    scatter_records(records, ranks, target)
    inside = ranks < 180
    expected_target = np.full_like(target, 7)
    expected_target[ranks[inside]] = records[inside]
    assert np.array_equal(target, expected_target)

    rows = np.zeros((200, width), layout.word)
    norm, mean = np.zeros(200, np.float32), np.zeros(200, np.float32)
    split_records(records, layout, rows, norm, mean)
    assert np.array_equal(rows, layout.words(records)[:, :width])
    assert np.array_equal(norm, layout.norm(records))
    assert np.array_equal(mean, layout.mean(records))

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
