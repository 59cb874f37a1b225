"""All processes of a run: found in the environment that torchrun or srun sets."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from ..common.errors import UsageError
from .group import ALONE, Connection, Group

TIMEOUT_VARIABLE = "SAECACHE_TIMEOUT"
TIMEOUT_SECONDS = 1800.0  # the longest that one process may keep the others waiting

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True, eq=False)
class World:
    """All processes of a run, and those of this machine.

    Attributes:
        everyone: the group of all.
        local_rank: the number of this process on its machine.
        local_size: the number of processes on this machine.
        connections: those of all groups, which are closed together.
    """

    everyone: Group = field(default_factory=lambda: ALONE)
    local_rank: int = 0
    local_size: int = 1
    connections: list[Connection] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return self.everyone.rank

    @property
    def size(self) -> int:
        return self.everyone.size

    @property
    def is_first(self) -> bool:
        return self.everyone.is_first

    def split(self, groups: Sequence[Sequence[int]]) -> Group:
        """The one of ``groups`` that this process is in. They are lists of ranks, alike in every process."""
        mine = ALONE
        for ranks in groups:
            handle = dist.new_group(list(ranks)) if len(ranks) > 1 else None
            if self.rank in ranks:
                connection = Connection(handle)
                self.connections.append(connection)
                mine = Group(rank=list(ranks).index(self.rank), ranks=tuple(ranks), connection=connection)
        return mine


_current = World()


def world() -> World:
    """The processes of this run: this one alone unless :func:`join_world` has found others."""
    return _current


@contextmanager
def join_world() -> Iterator[World]:
    """Meet the other processes that torchrun or srun has started, for a ``with`` block.

    Raises:
        UsageError: the environment names other processes, but not where to meet them.
    """
    global _current
    found = _placement()
    if found is None or _current.size > 1:
        yield _current
        return
    rank, size, local_rank, local_size = found
    _check_meeting_point()
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=_timeout()))
    connection = Connection(dist.group.WORLD)
    everyone = Group(rank=rank, ranks=tuple(range(size)), connection=connection)
    before = _current
    _current = World(everyone, local_rank, local_size, [connection])
    try:
        yield _current
    finally:
        for one in _current.connections:
            one.handle = None
        _current = before
        dist.destroy_process_group()


def started_with_others() -> bool:
    """Whether torchrun or srun has started this process as one of several; torch is not asked."""
    return _placement() is not None


def _placement() -> tuple[int, int, int, int] | None:
    """Rank, number of processes, and both on this machine; None for a process alone."""
    for names in (_TORCHRUN, _SRUN):
        rank, size, local_rank, local_size = (os.environ.get(name, "") for name in names)
        if not (rank and size):
            continue
        numbers = [rank, size, local_rank or "0", local_size.partition("(")[0] or "1"]
        try:
            r, n, local_r, local_n = (int(number) for number in numbers)
        except ValueError:
            raise UsageError(
                f"{names[0]} to {names[-1]} should be whole numbers, got {', '.join(numbers)}: start "
                "saecache with torchrun or srun, or remove these variables"
            ) from None
        if not 0 <= r < n:
            raise UsageError(f"{names[0]}={r} must be from 0 to {names[1]}={n} less 1")
        return None if n == 1 else (r, n, local_r, local_n)
    return None


def _check_meeting_point() -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must say where the processes meet. torchrun sets them; with srun: "
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500"
        )


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, got {text!r}")
    return seconds
