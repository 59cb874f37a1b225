"""Reuse large buffers, because filling fresh memory takes several times as long as filling warm memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from . import huge_pages

_lock = threading.Lock()
_free: dict[torch.device, list[Tensor]] = {}  # flat uint8 tensors that are not in use


@contextmanager
def borrowed(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Lend an uninitialized tensor for a ``with`` block; its memory is kept for the next borrower."""
    device, num_bytes = torch.device(device), prod(shape) * dtype.itemsize
    flat = _take(device, num_bytes)
    try:
        yield flat[:num_bytes].view(dtype).view(shape)
    finally:
        with _lock:
            _free.setdefault(device, []).append(flat)


def release_scratch() -> None:
    """Return the memory of all unused buffers to the system."""
    with _lock:
        _free.clear()


def _take(device: torch.device, num_bytes: int) -> Tensor:
    with _lock:
        free = _free.get(device, [])
        fitting = [buffer for buffer in free if buffer.numel() >= num_bytes]
        if fitting:
            best = min(fitting, key=Tensor.numel)
        elif free:
            best = max(free, key=Tensor.numel)  # too small: it is replaced, so that buffers do not pile up
        else:
            best = None
        if best is not None:
            free[:] = [buffer for buffer in free if buffer is not best]
    if best is not None and best.numel() >= num_bytes:
        return best
    del best
    return huge_pages.empty_bytes(num_bytes, device)
