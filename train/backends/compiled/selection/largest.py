"""The largest of many values, the first of equal ones."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bits import float_of_key, keys_of, kth_key
from ..compile import compiled


def kth_largest(values: Tensor, k: int) -> float:
    """The ``k``-th largest of ``values`` (float32, any shape), which must not hold NaN."""
    flat = values.detach().reshape(-1)
    return float(_kth(flat.numpy(), k))


def mask_of_largest(values: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest of ``values`` [n], the first of equal ones: bool [n]."""
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    mask = torch.empty(values.numel(), dtype=torch.bool)
    _mark_largest(values.numpy(), count, mask.numpy())
    return mask


@compiled
def _kth(values: Any, k: int) -> Any:
    keys = keys_of(values)
    least = kth_key(keys, keys.shape[0], k)
    smallest = np.int32(2**31 - 1)
    for i in range(keys.shape[0]):  # kth_key may be below the value that it separates from the others
        if keys[i] >= least:
            smallest = min(smallest, keys[i])
    return float_of_key(smallest)


@compiled
def _mark_largest(values: Any, count: int, mask: Any) -> None:
    keys = keys_of(values)
    least = kth_key(keys, keys.shape[0], count)
    above = 0
    for i in range(keys.shape[0]):
        above += keys[i] > least
    equal_left = count - above
    for i in range(keys.shape[0]):
        mask[i] = keys[i] > least or (keys[i] == least and equal_left > 0)
        equal_left -= keys[i] == least
