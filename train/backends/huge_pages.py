"""Large tensors on a CPU, in huge pages where the system gives them to who asks.

A step reads rows of the weights and of the screen in no order. With pages of 4 KiB the processor has to look
up where nearly each of them is, which takes longer than reading it; a huge page has 2 MiB. Linux gives huge
pages to who asks (``madvise``, what most distributions set), and torch does not ask. The values are the same.
"""

import mmap

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 << 20
SMALLEST_BYTES = 2 * HUGE_PAGE_BYTES  # below it a tensor hardly fills one
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of the shape, type and device of ``tensor``; their memory is taken as they are written to."""
    flat = _allocate(tensor.nbytes) if tensor.is_cpu else None
    return torch.zeros_like(tensor) if flat is None else flat.view(tensor.dtype).view(tensor.shape)


def empty_bytes(num_bytes: int, device: torch.device) -> Tensor:
    """uint8 [num_bytes], whose values mean nothing."""
    flat = _allocate(num_bytes) if device.type == "cpu" else None
    return torch.empty(num_bytes, dtype=torch.uint8, device=device) if flat is None else flat


def move(tensor: Tensor) -> None:
    """Give ``tensor`` itself other memory, with the same values; views of it keep the old one."""
    flat = _allocate(tensor.nbytes) if tensor.is_cpu else None
    if flat is not None:
        tensor.set_(flat.view(tensor.dtype).view(tensor.shape).copy_(tensor))  # type: ignore[call-overload]


def _allocate(num_bytes: int) -> Tensor | None:
    """uint8 [num_bytes] of zeros, from a huge page's start on; None if it is small, or there are none."""
    if num_bytes < SMALLEST_BYTES or _ADVICE is None:
        return None
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(_ADVICE)
    except OSError:  # a kernel without them
        return None
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE_BYTES
    return torch.frombuffer(memory, dtype=torch.uint8, offset=start, count=num_bytes)
