"""All processes of a run: found in the environment that torchrun or srun sets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist

from .connection import Connection
from .environment import check_meeting_point, find_placement, still_seconds, timeout_seconds
from .errors import LostProcessError
from .group import ALONE, Group
from .heartbeat import Heartbeat

LEAVING_SECONDS = 10.0  # at most, for the others to say their last
# An exchange has no limit of its own: who is waited for shows that it lives, see heartbeat.py.
_NO_LIMIT = timedelta(days=365)


@dataclass(frozen=True, eq=False)
class World:
    """All processes of a run, and those of this machine.

    Attributes:
        everyone: the group of all.
        local_rank: the number of this process on its machine.
        local_size: the number of processes on this machine.
        connections: those of all groups, which are closed together.
        heartbeat: shows that this process lives, and has the store that all share; None for one alone.
    """

    everyone: Group = field(default_factory=lambda: ALONE)
    local_rank: int = 0
    local_size: int = 1
    connections: list[Connection] = field(default_factory=list)
    heartbeat: Heartbeat | None = None

    @property
    def rank(self) -> int:
        return self.everyone.rank

    @property
    def size(self) -> int:
        return self.everyone.size

    @property
    def is_first(self) -> bool:
        return self.everyone.is_first

    @property
    def number_of_gpu(self) -> int | None:
        """Which GPU of its machine this process takes, for :func:`.choose_device`; None for one alone.

        NCCL refuses two processes on one GPU.
        """
        return self.local_rank if self.size > 1 else None

    def split(self, groups: Sequence[Sequence[int]]) -> Group:
        """The one of ``groups`` that this process is in. They are lists of ranks, alike in every process.

        A group numbers its processes in the order of its list, and counts its traffic with everyone's.
        """
        mine = ALONE
        for ranks in groups:
            handle = dist.new_group(list(ranks), timeout=_NO_LIMIT) if len(ranks) > 1 else None
            if self.rank in ranks:
                connection = Connection(handle, self.heartbeat, self.everyone.connection.carries)
                self.connections.append(connection)
                mine = Group(
                    rank=list(ranks).index(self.rank),
                    ranks=tuple(ranks),
                    connection=connection,
                    traffic=self.everyone.traffic,
                )
        return mine

    def who_says(self, text: str) -> int:
        """The rank of the first process that asks to say ``text``; it need not wait for the others."""
        if self.heartbeat is None or self.heartbeat.store_is_lost:
            return self.rank
        key = sha256(text.encode("utf-8")).hexdigest()
        try:
            return int(self.heartbeat.store.compare_set(f"said/{key}", "", str(self.rank)))
        except (RuntimeError, ValueError):  # the process that held the store is gone
            return self.rank


_current = World()


def world() -> World:
    """The processes of this run: this one alone unless :func:`join_world` has found others."""
    return _current


@contextmanager
def join_world() -> Iterator[World]:
    """Meet the other processes that torchrun or srun has started, for a ``with`` block.

    Raises:
        UsageError: the environment names other processes, but not where to meet them.
        LostProcessError: they did not come.
    """
    global _current
    found = find_placement()
    if found is None or _current.size > 1:
        yield _current
        return
    rank, size, local_rank, local_size = found
    check_meeting_point()
    timeout, still = timedelta(seconds=timeout_seconds()), still_seconds()
    try:
        store, _, _ = next(
            dist.rendezvous(  # type: ignore[attr-defined]
                "env://", rank, size, timeout=timeout
            )
        )
        heartbeat = Heartbeat(store, rank, size, timeout, still)
        with heartbeat.exchange():
            ours = dist.PrefixStore("saecache", store)  # type: ignore[attr-defined]
            carriers = _agree_on_carriers(ours, rank, size, local_size)
            named = ",".join(f"{device}:{carrier}" for device, carrier in carriers.items())
            named = "gloo" if "cuda" not in carriers else named  # by its name alone torch warns of nothing
            dist.init_process_group(named, store=ours, rank=rank, world_size=size, timeout=_NO_LIMIT)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(f"the {size} processes did not meet: {error}") from error
    connection = Connection(dist.group.WORLD, heartbeat, frozenset(carriers))
    everyone = Group(rank=rank, ranks=tuple(range(size)), connection=connection)
    before = _current
    _current = World(everyone, local_rank, local_size, [connection], heartbeat)
    try:
        yield _current
    finally:
        _leave(heartbeat)
        for one in _current.connections:
            one.handle = None
        _current = before
        dist.destroy_process_group()


def _agree_on_carriers(store: Any, rank: int, size: int, local_size: int) -> dict[str, str]:
    """Who carries the tensors of each type of device: gloo those in main memory, NCCL those on GPUs.

    NCCL only carries them if every machine has a GPU for each of its processes, and every torch has NCCL. All
    processes find the same answer, because all of them have to use NCCL or none.
    """
    can = dist.is_nccl_available() and torch.cuda.device_count() >= local_size
    store.set(f"nccl/{rank}", "yes" if can else "no")
    if all(store.get(f"nccl/{other}") == b"yes" for other in range(size)):
        return {"cpu": "gloo", "cuda": "nccl"}
    return {"cpu": "gloo"}


def _leave(heartbeat: Heartbeat) -> None:
    """The first process, which may hold the store, waits a moment for the others to say their last."""
    deadline, store = monotonic() + LEAVING_SECONDS, heartbeat.store
    heartbeat.leave()
    with suppress(RuntimeError):
        left = 0 if heartbeat.store_is_lost else store.add("left", 1)
        while heartbeat.rank == 0 and left < heartbeat.size - len(heartbeat.lost) and monotonic() < deadline:
            sleep(0.02)
            left = store.add("left", 0)
