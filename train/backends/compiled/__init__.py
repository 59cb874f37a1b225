"""Compiled loops for float32 rows in main memory: Numba, and torch's products as screens."""

import torch
from torch import Tensor

PREFERENCE = 10


def serves(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32
