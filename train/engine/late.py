"""Read numbers from a device without waiting for the work that it was given since."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A mark in the order of a device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come past the mark."""


def _record_cuda(device: torch.device) -> Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


RECORD: dict[str, Callable[[torch.device], Event]] = {"cuda": _record_cuda}
"""For each type of device that copies to the host beside its other work, how to mark the end of the copy."""


class LateRead:
    """A copy of a small tensor on its way to the host.

    A plain read waits for everything that the device was given before, and the device then waits for the
    host. Here the copy starts at once, and :meth:`numbers` waits for the copy alone: asked for a step later,
    it costs nothing. A device of another type than those of :data:`RECORD` is read when the numbers are asked
    for, and main memory at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._event: Event | None = None
        if record := RECORD.get(values.device.type):
            pinned = values.device.type == "cuda"
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
            self._values.copy_(values, non_blocking=True)
            self._event = record(values.device)

    def numbers(self) -> Tensor:
        """The tensor in main memory."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()
