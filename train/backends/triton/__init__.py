"""Triton kernels for float32 rows in the memory of an NVIDIA GPU: the extra ``saecache[cuda]``.

Every sum has one fixed order and the only atomics are integer ones, so that the same inputs give the same
bits each time. Legend of the whole folder: B rows, D model width, F latents, P pairs.
"""

import torch
from torch import Tensor

from ....common.devices import runs_triton

PREFERENCE = -1  # below plain: only SAECACHE_BACKEND=triton chooses it, until it has been run on a GPU


def serves(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and runs_triton(tensor.device)
