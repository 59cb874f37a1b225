"""The kernels that move rows, against NumPy's indexing."""

import numpy as np
import pytest

from saecache.store.encoding.stored_rows import copy_rows, widen_rows


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "uint64"])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_copy_rows_equals_indexing(dtype: str, width: int) -> None:
    rng = np.random.default_rng(0)
    source = (rng.normal(size=(50, width)) * 100).astype(dtype)
    picks, places = rng.integers(0, 50, 30), rng.permutation(40)[:30]
    target = np.zeros((40, width), dtype)
    expected = target.copy()
    expected[places] = source[picks]
    copy_rows(source, picks, target, places)
    assert np.array_equal(target, expected)


def test_widen_rows_is_exact_for_every_float16() -> None:
    source = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(256, 256)
    picks = np.random.default_rng(0).permutation(256)
    places = np.random.default_rng(1).permutation(300)[:256]
    target = np.full((300, 256), 7, np.float32)
    widen_rows(source, picks, target, places)
    expected = np.full((300, 256), 7, np.float32)
    expected[places] = source[picks].astype(np.float32)
    finite = ~np.isnan(expected)
    assert np.array_equal(target.view(np.uint32)[finite], expected.view(np.uint32)[finite])  # -0 is -0
    assert np.isnan(target[~finite]).all()


def test_rows_outside_are_a_bug_that_is_caught() -> None:
    source, target = np.zeros((3, 2), np.float16), np.zeros((3, 2), np.float16)
    inside, outside = np.array([1]), np.array([3])
    with pytest.raises(AssertionError):
        copy_rows(source, outside, target, inside)
    with pytest.raises(AssertionError):
        copy_rows(source, inside, target, outside)
    with pytest.raises(AssertionError):
        copy_rows(source, inside, target.astype(np.float32), inside)
    with pytest.raises(AssertionError):
        widen_rows(source, outside, target.astype(np.float32), inside)
