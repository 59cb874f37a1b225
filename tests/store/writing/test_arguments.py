"""What callers hand to a writer is checked and brought into one form."""

import numpy as np
import pytest
import torch

from saecache.store import UsageError
from saecache.store.writing.arguments import as_float32, check_rows, int32_copy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_is_taken(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6).to(dtype)
    check_rows(x, 4, 6, "h")
    assert np.array_equal(as_float32(x), x.float().numpy())


def test_numpy_rows_of_any_layout_are_taken() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4)).T
    x.flags.writeable = False
    assert np.array_equal(as_float32(x), x.astype(np.float32))


def test_wrong_rows_are_refused_with_their_hook() -> None:
    with pytest.raises(UsageError, match=r"mlp_out.0: expected shape \(4, 6\), got \(4, 5\)"):
        check_rows(np.zeros((4, 5), np.float32), 4, 6, "mlp_out.0")
    with pytest.raises(UsageError, match="expected floating point numbers, got int64"):
        check_rows(np.zeros((4, 6), np.int64), 4, 6, "mlp_out.0")


def test_int32_copy() -> None:
    values = np.array([1, 2])
    copy = int32_copy(values, "ids")
    values[0] = 9
    assert copy.tolist() == [1, 2] and copy.dtype == np.int32
    with pytest.raises(UsageError, match="ids: expected integers"):
        int32_copy([1.5], "ids")
    with pytest.raises(UsageError, match="ids: expected values from -1"):
        int32_copy([2**31], "ids")
