"""Batch memory that is used again once nobody holds the tensor: fresh memory fills several times slower."""

import weakref

import numpy as np
import torch
from numpy.typing import NDArray

_KEPT = 4


class BufferPool:
    """Hands out tensors; when the last tensor over a piece of memory is gone, the memory comes back."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor [rows, width]."""
        num_bytes = rows * width * dtype.itemsize
        if not num_bytes:
            return torch.empty(rows, width, dtype=dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        if len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
        # The tensor's storage holds this view, the view's end gives the memory back.
        view = memory[:num_bytes]
        weakref.finalize(view, self._give_back, memory).atexit = False
        return torch.from_numpy(view).view(dtype).view(rows, width)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < _KEPT:
            self._free.append(memory)
