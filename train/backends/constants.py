"""Small tensors that every step asks for again, made once for each device.

Their number is far below the sizes of the caches: the recording of a CUDA graph must find them made.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def spaced(
    start: int, stop: int, step: int, device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """``torch.arange(start, stop, step)``."""
    return torch.arange(start, stop, step, dtype=dtype, device=device)


@lru_cache(maxsize=16)
def one(device: torch.device) -> Tensor:
    """float32 []."""
    return torch.ones((), device=device)
