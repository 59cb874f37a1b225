"""The encoding kernels against plain NumPy, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecache.store.encoding.encode import LANES, encode_rows
from saecache.store.encoding.records import RecordLayout

WIDTHS = [1, 2, 17, 64, 100, 768]


def plain_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row sums of [n, D] in the documented order: element j to lane j mod LANES, then halving the lanes."""
    n, d_model = x.shape
    padded = np.zeros((n, -(-d_model // LANES) * LANES), np.float32)
    padded[:, :d_model] = x
    lanes = np.zeros((n, LANES), np.float32)
    for block in padded.reshape(n, -1, LANES).transpose(1, 0, 2):
        lanes = lanes + block
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def plain_encode(
    x: NDArray[np.float32], dtype: str, unit: bool
) -> tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.float32]]:
    """Stored rows, norm and mean."""
    mean = plain_sum(x) / np.float32(x.shape[1])
    centered = x - mean[:, None]
    norm = np.sqrt(plain_sum(centered * centered))
    norm[norm < np.finfo(np.float32).tiny] = 0
    inverse = np.divide(np.float32(1), norm, out=np.zeros_like(norm), where=norm > 0)
    return (centered * inverse[:, None] if unit else x).astype(dtype), norm, mean


def encode(x: NDArray[np.float32], dtype: str, unit: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    layout = RecordLayout(x.shape[1], dtype)
    records = np.full((len(x), layout.record_bytes), 255, np.uint8)
    return records, encode_rows(x, records, layout, unit)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("unit", [True, False])
def test_equals_plain_numpy(width: int, dtype: str, unit: bool) -> None:
    rng = np.random.default_rng(width)
    x = (rng.normal(size=(50, width)) * rng.lognormal(sigma=3, size=(50, 1)) + rng.normal()).astype(
        np.float32
    )
    x[7] = 3.25  # zero norm
    x[8] = 0
    records, bad = encode(x, dtype, unit)
    layout = RecordLayout(width, dtype)
    stored, norm, mean = plain_encode(x, dtype, unit)
    got = layout.words(records)[:, :width].view(dtype)
    assert np.array_equal(got.view(np.uint8), np.ascontiguousarray(stored).view(np.uint8))
    assert np.array_equal(layout.norm(records), norm)
    assert np.array_equal(layout.mean(records), mean)
    assert not records[:, layout.row_bytes : -8].any()
    assert not bad.any()


def test_rounding_to_float16_is_that_of_numpy_everywhere() -> None:
    """Every float16, the points halfway between neighbours, and their float32 neighbours."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (half[:-1] + half[1:]) / 2
    exact = np.concatenate([half, middle])
    values = np.concatenate(
        [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))]
    )
    values = np.concatenate([values, -values])
    x = np.resize(values, (-(-len(values) // 64), 64))
    records, bad = encode(np.ascontiguousarray(x), "float16", unit=False)
    got = RecordLayout(64, "float16").words(records)[:, :64].view(np.float16)
    assert np.array_equal(got.view(np.uint16), x.astype(np.float16).view(np.uint16))
    assert not bad.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 5), st.booleans())
def test_a_row_does_not_depend_on_its_batch(seed: int, width: int, batch: int, unit: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(12, width)).astype(np.float32)
    whole, _ = encode(x, "float16", unit)
    parts = [encode(x[i : i + batch], "float16", unit)[0] for i in range(0, 12, batch)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unit_refuses_what_has_no_finite_norm(value: float, dtype: str) -> None:
    x = np.ones((3, 70), np.float32)
    x[1, 69] = value
    assert encode(x, dtype, unit=True)[1].tolist() == [False, True, False]


def test_overflow_of_float16_begins_at_65520() -> None:
    x = np.zeros((4, 5), np.float32)
    x[:, 2] = [65504, np.nextafter(np.float32(65520), np.float32(0)), 65520, -70000]
    assert encode(x, "float16", unit=False)[1].tolist() == [False, False, True, True]
    assert not encode(x, "float16", unit=True)[1].any()
    assert not encode(x, "float32", unit=False)[1].any()


def test_unit_rows_can_be_undone() -> None:
    x = np.random.default_rng(0).normal(size=(20, 48)).astype(np.float32) * 1000
    records, _ = encode(x, "float32", unit=True)
    layout = RecordLayout(48, "float32")
    stored = layout.words(records)[:, :48].view(np.float32)
    again = stored * layout.norm(records)[:, None] + layout.mean(records)[:, None]
    assert np.abs(again - x).max() < 1e-3
