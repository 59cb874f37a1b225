"""The compiled backend for float32 tensors in main memory: Numba loops, and torch's products as screens."""

import torch
from torch import Tensor

PREFERENCE = 10


def serves(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32
