"""Read numbers from a device without waiting for the work that it was given since."""

import torch
from torch import Tensor

from ...common.transfers import EVENTS, Event


class LateRead:
    """A copy of a small tensor on its way to the host.

    A plain read waits for everything that the device was given before, and the device then waits for the
    host. Here the copy starts at once, and :meth:`numbers` waits for the copy alone: asked for a step later,
    it costs nothing. A device without an entry in :data:`.EVENTS` is read when the numbers are asked for, and
    main memory at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._event: Event | None = None
        if record := EVENTS.get(values.device.type):
            pinned = values.device.type == "cuda"
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
            self._values.copy_(values, non_blocking=True)
            self._event = record(values.device)

    def numbers(self) -> Tensor:
        """The tensor in main memory."""
        if self._event is not None:
            self._event.wait()
        return self._values.cpu()
