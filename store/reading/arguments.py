"""The arguments of a reader, checked."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...common.validation import suggest
from .sharded_array import ShardedArray


def check_one_of(what: str, name: str, known: Any) -> None:
    """Refuse a name that is not among ``known``, and list those that are.

    Raises:
        UsageError: with the names that are similar.
    """
    if name not in known:
        raise UsageError(f"no {what} {name!r}{suggest(str(name), known)}; expected one of {', '.join(known)}")


def check_whole_numbers(**given: Any) -> list[int]:
    """The arguments ``given`` by name, as Python's integers.

    Raises:
        UsageError: one of them is something else.
    """
    for name, value in given.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise UsageError(f"{name}: expected a whole number, got {value!r}")
    return [int(value) for value in given.values()]


def check_floating(dtype: Any) -> None:
    """Refuse a type in which normalized rows would be cut to whole numbers.

    Raises:
        UsageError: ``dtype`` is no floating point type of torch.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype: expected a floating point type such as torch.float32, got {dtype!r}")


def check_row_numbers(array: ShardedArray, rows: Any) -> NDArray[np.int64]:
    """Row numbers of any shape, torch or numpy, or a slice, or a mask, as int64 [n]; errors as
    ``ShardedArray.check_rows``.
    """
    if isinstance(rows, slice):
        rows = np.arange(*rows.indices(len(array)), dtype=np.int64)
    return array.check_rows(np.asarray(rows.cpu() if isinstance(rows, torch.Tensor) else rows).reshape(-1))
