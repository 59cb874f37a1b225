"""How tensors travel between processes: who carries them, what is counted, and what a broken way means."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from ..common.transfers import EVENTS
from .errors import LostProcessError
from .heartbeat import Heartbeat, describe_lost


@dataclass
class Traffic:
    """What this process has sent so far: the number of messages and their bytes, to each receiver."""

    messages: int = 0
    bytes: int = 0

    def add(self, tensor: Tensor, receivers: int) -> None:
        self.messages += receivers
        self.bytes += tensor.numel() * tensor.element_size() * receivers


@dataclass(eq=False)
class Connection:
    """The way to the other processes of a group; ``handle``, of torch.distributed, is None once it is closed.

    A handle that outlives its connection aborts the process at its end, so nobody else keeps one.
    ``heartbeat`` knows which processes are gone. ``carries`` are the types of devices whose tensors it
    exchanges; those of others travel through main memory.
    """

    handle: "dist.ProcessGroup | None" = None
    heartbeat: Heartbeat | None = None
    carries: frozenset[str] = frozenset({"cpu"})

    def carried(self, tensor: Tensor) -> Tensor:
        """``tensor``, or its copy in main memory where the connection does not carry its device's."""
        return tensor if tensor.device.type in self.carries else tensor.cpu()

    @contextmanager
    def exchange(self, tensor: Tensor) -> Iterator[None]:
        """A block that sends or receives ``tensor``.

        Raises:
            LostProcessError: another process is gone.
        """
        heartbeat = self.heartbeat
        if heartbeat is None:  # alone
            yield
            return
        if heartbeat.lost:
            raise LostProcessError(describe_lost(heartbeat.lost))
        try:
            with heartbeat.exchange():
                yield
                if end := EVENTS.get(tensor.device.type):  # NCCL returns before anything has travelled
                    heartbeat.watch(end(tensor.device).is_reached)
        except RuntimeError as error:  # gloo and nccl have no errors of their own
            raise LostProcessError(describe_lost(heartbeat.find_lost(), _first_line(error))) from error


def bring_back(carried: Tensor, tensor: Tensor) -> None:
    """Overwrite ``tensor`` with what came in its copy, if it travelled as one."""
    if carried is not tensor:
        tensor.copy_(carried)


class Sending(NamedTuple):
    """A message under way: ``tensor`` has the memory that is sent, and keeps it until ``work`` is done."""

    work: "dist.Work | None"
    tensor: Tensor


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
