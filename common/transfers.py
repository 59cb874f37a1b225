"""Bytes between main memory and a device, moved while both compute.

A new kind of device is one entry in :data:`EVENTS`, and one in :data:`TRANSFERS` if it has a second stream.

A device computes what one thread gives it in order, on a stream. A copy on a second stream, from or to pinned
memory, needs neither the processor nor that order; events say when one side may go on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in what a device was given to do."""

    def wait(self) -> None:
        """Block this thread until the device has reached it."""

    def is_reached(self) -> bool:
        """Whether the device has reached it."""


class Transfers(Protocol):
    """What a device needs to offer. Several threads may use one object."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Uninitialized main memory, uint8 [num_bytes], which the device copies from and to by itself."""

    def on_device(self, num_bytes: int) -> Tensor:
        """Uninitialized memory of the device, uint8 [num_bytes]."""

    def event(self) -> Event:
        """The end of what the current stream of this thread was given so far."""

    def copy(self, target: Tensor, source: Tensor, after: Event | None = None) -> Event:
        """Begin a copy on the second stream, not before ``after``; returns its end."""

    def follow(self, event: Event) -> None:
        """Let the current stream of this thread go on only after ``event``. This thread does not wait."""

    def beside(self, after: Event) -> AbstractContextManager[None]:
        """Within it the second stream is the current one of this thread; it goes on only after ``after``."""


class CudaEvent:
    """As :class:`Event`, on a stream of CUDA."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.recorded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits asleep
        self.recorded.record(stream)

    def wait(self) -> None:
        self.recorded.synchronize()

    def is_reached(self) -> bool:
        return bool(self.recorded.query())  # type: ignore[no-untyped-call]


EVENTS: dict[str, Callable[[torch.device], Event]] = {
    "cuda": lambda device: CudaEvent(torch.cuda.current_stream(device))
}
"""Device type -> the end of what the current stream of this thread was given so far."""


class CudaTransfers:
    """As :class:`Transfers`, for one GPU of CUDA (or ROCm, which torch calls the same)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def on_device(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def event(self) -> Event:
        return EVENTS["cuda"](self._device)

    def copy(self, target: Tensor, source: Tensor, after: Event | None = None) -> CudaEvent:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self.follow(after)
            target.copy_(source, non_blocking=True)
        return CudaEvent(self._stream)

    def follow(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        torch.cuda.current_stream(self._device).wait_event(event.recorded)

    @contextmanager
    def beside(self, after: Event) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            self.follow(after)
            yield


Kind = Callable[[torch.device], Transfers]
TRANSFERS: dict[str, Kind] = {"cuda": CudaTransfers}  # device type -> its transfers


def transfers_of(device: torch.device) -> Transfers | None:
    """New transfers with a second stream of their own; None for devices without one (CPU, MPS)."""
    kind = TRANSFERS.get(device.type)
    return None if kind is None else kind(device)


@dataclass
class Slot:
    """A piece of pinned memory and a piece of the same size on the device, for one load after the other.

    The pinned side may be filled again once ``copied`` was waited for; the copy of the next load waits, on
    the device, for the end of the work that reads this one.
    """

    transfers: Transfers
    num_bytes: int
    pinned: Tensor = field(init=False)  # uint8 [num_bytes]
    there: Tensor = field(init=False)  # uint8 [num_bytes]
    _copied: Event | None = None
    _used: Event | None = None

    def __post_init__(self) -> None:
        self.pinned = self.transfers.pinned(self.num_bytes)
        self.there = self.transfers.on_device(self.num_bytes)
        self._used = self.transfers.event()  # the memory may have been another's a moment ago

    def send(self, num_bytes: int) -> None:
        """Begin to copy the first ``num_bytes`` from here to the device."""
        self._copied = self.transfers.copy(self.there[:num_bytes], self.pinned[:num_bytes], self._used)

    def fetch(self, num_bytes: int) -> None:
        """Begin to copy the first ``num_bytes`` from the device to here, after the work given so far."""
        source, target = self.there[:num_bytes], self.pinned[:num_bytes]
        self._copied = self.transfers.copy(target, source, self.transfers.event())

    def wait(self) -> None:
        """Block this thread until the last copy is done."""
        if self._copied is not None:
            self._copied.wait()

    def follow(self) -> None:
        """Let the current stream go on after the last copy; this thread does not wait."""
        assert self._copied is not None, "something was sent"
        self.transfers.follow(self._copied)

    def used(self) -> None:
        """What this thread gave the device so far is all that reads the load."""
        self._used = self.transfers.event()
