"""Slots: neither side is overwritten while the other still needs it."""

import threading
from typing import Any

import torch

from saecache.common.transfers import TRANSFERS, Slot, transfers_of

from ..killing import DEADLINE_SECONDS
from ..pretend_transfers import PretendTransfers, Reached, pretend


class Later:
    """An event that the test reaches."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def wait(self) -> None:
        assert self.reached.wait(DEADLINE_SECONDS)


def make(seconds: float = 0.0) -> PretendTransfers:
    return pretend(seconds)(torch.device("cpu"))


def test_a_cpu_has_no_transfers_and_a_gpu_has() -> None:
    assert transfers_of(torch.device("cpu")) is None and transfers_of(torch.device("mps")) is None
    assert "cuda" in TRANSFERS


def test_a_load_arrives_and_a_result_comes_back() -> None:
    slot = Slot(make(0.01), 8)
    slot.pinned[:5] = torch.arange(5, dtype=torch.uint8)
    slot.send(5)
    slot.wait()
    assert slot.there[:5].tolist() == [0, 1, 2, 3, 4] and slot.there[5] == 0x5A
    slot.there[:5] += 1
    slot.fetch(4)
    slot.wait()
    assert slot.pinned[:5].tolist() == [1, 2, 3, 4, 4]


def test_the_next_load_waits_on_the_device_for_the_work_on_this_one() -> None:
    transfers, slot_events = make(), [Reached(), Later()]
    transfers.event = lambda: slot_events.pop(0)  # type: ignore[method-assign]
    later: Any = slot_events[1]
    slot = Slot(transfers, 4)
    slot.send(4)
    slot.wait()
    slot.used()  # the work is not done yet
    slot.pinned[:] = 7
    slot.send(4)  # does not block this thread
    assert transfers.done == 1 and slot.there[0] == 0xA5
    later.reached.set()
    slot.wait()
    assert transfers.done == 2 and slot.there[0] == 7
