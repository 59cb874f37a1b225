"""Large buffers that are used again: filling fresh memory costs several times what filling warm memory
does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

_lock = threading.Lock()
_free: dict[torch.device, list[Tensor]] = {}  # flat uint8 tensors nobody uses now


@contextmanager
def borrowed(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """An uninitialized tensor for the length of a ``with`` block; its memory then waits for the next
    borrower.
    """
    device, num_bytes = torch.device(device), prod(shape) * dtype.itemsize
    flat = _take(device, num_bytes)
    try:
        yield flat[:num_bytes].view(dtype).view(shape)
    finally:
        with _lock:
            _free.setdefault(device, []).append(flat)


def release_scratch() -> None:
    """Give the memory of all buffers that nobody uses back to the system."""
    with _lock:
        _free.clear()


def _take(device: torch.device, num_bytes: int) -> Tensor:
    with _lock:
        free = _free.get(device, [])
        fitting = [buffer for buffer in free if buffer.numel() >= num_bytes]
        if fitting:
            best = min(fitting, key=Tensor.numel)
        elif free:
            best = max(free, key=Tensor.numel)  # too small: replaced, so that buffers do not pile up
        else:
            best = None
        if best is not None:
            free[:] = [buffer for buffer in free if buffer is not best]
    if best is not None and best.numel() >= num_bytes:
        return best
    del best
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)
