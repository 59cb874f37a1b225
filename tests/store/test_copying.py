"""The kernels that move rows, against NumPy's indexing."""

import numpy as np
import pytest

from saecache.store.copying import copy_rows


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


def test_rows_outside_are_a_bug_that_is_caught() -> None:
    source, target = np.zeros((3, 2), np.float16), np.zeros((3, 2), np.float16)
    inside, outside = np.array([1]), np.array([3])
    with pytest.raises(AssertionError):
        copy_rows(source, outside, target, inside)
    with pytest.raises(AssertionError):
        copy_rows(source, inside, target, outside)
    with pytest.raises(AssertionError):
        copy_rows(source, inside, target.astype(np.float32), inside)
