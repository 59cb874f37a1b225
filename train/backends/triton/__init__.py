"""Triton kernels for float32 rows in the memory of an NVIDIA GPU: the extra ``saecache[cuda]``.

Every sum has one fixed order and the only atomics are integer ones, so that the same inputs give the same
bits each time. Legend of the whole folder: B rows, D model width, F latents, P pairs.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

PREFERENCE = -1  # below plain: only SAECACHE_BACKEND=triton chooses it, until it has been run on a GPU


def serves(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and tensor.dtype == torch.float32 and _usable(tensor.device)


@cache
def _usable(device: torch.device) -> bool:
    """Triton is installed, and the NVIDIA GPU has tensor cores for bfloat16 (sm_80 or newer)."""
    if find_spec("triton") is None or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
