"""A pretended device in main memory. A thread makes its copies late, so that who does not wait is noticed."""

import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Reached:
    """An event of the past."""

    def wait(self) -> None:
        pass


class PretendEvent:
    """The end of a copy; waiting for it raises what went wrong."""

    def __init__(self, copy: "Future[None]") -> None:
        self.copy = copy

    def wait(self) -> None:
        self.copy.result()


class PretendTransfers:
    """As :class:`saecache.common.transfers.Transfers`, for the CPU.

    What a thread asks the device to compute is done at once. Copies are made in order by a thread, after
    ``seconds`` each, and fail where their source has changed since they were asked for.
    """

    made: list["PretendTransfers"]  # by each subclass
    seconds = 0.0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._thread = ThreadPoolExecutor(1, "pretend-copies")
        self._lock = threading.Lock()
        self.asked = 0
        self.done = 0
        self.bytes = 0
        self.pinned_bytes = 0
        self.beside_threads: list[str] = []
        type(self).made.append(self)

    def pinned(self, num_bytes: int) -> Tensor:
        self.pinned_bytes += num_bytes
        return torch.full((num_bytes,), 0xA5, dtype=torch.uint8)

    def on_device(self, num_bytes: int) -> Tensor:
        return torch.full((num_bytes,), 0x5A, dtype=torch.uint8)

    def event(self) -> Any:
        return Reached()

    def copy(self, target: Tensor, source: Tensor, after: Any = None) -> PretendEvent:
        before = zlib.crc32(source.numpy())
        self.asked += 1

        def work() -> None:
            if after is not None:
                after.wait()
            time.sleep(self.seconds)
            target.copy_(source)
            if zlib.crc32(source.numpy()) != before or zlib.crc32(target.numpy()) != before:
                raise AssertionError("memory was overwritten before its copy was done")
            with self._lock:
                self.done += 1
                self.bytes += source.numel()

        return PretendEvent(self._thread.submit(work))

    def follow(self, event: PretendEvent) -> None:
        event.wait()

    @contextmanager
    def beside(self, after: Any) -> Iterator[None]:
        after.wait()
        self.beside_threads.append(threading.current_thread().name)
        yield


def pretend(seconds: float = 0.0) -> type[PretendTransfers]:
    """A kind of its own, to be put into ``TRANSFERS``; ``made`` lists its objects."""
    return type("Pretend", (PretendTransfers,), {"made": [], "seconds": seconds})
