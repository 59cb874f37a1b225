"""Harvests of several processes, forked from one that has imported everything, and their mishaps."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from saecache.harvest import HarvestConfig

from .processes import SECONDS, Ended, free_port


@dataclass(frozen=True)
class Mishap:
    """What goes wrong in process ``rank``: ``kind`` is kill, stop, nan or full.

    It comes after ``steps`` forwards, after ``copied`` blocks of a cache that is extended, after ``seconds``,
    or once there are shards of rows.
    """

    kind: str
    rank: int
    steps: int | None = None
    copied: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Harvest:
    """A harvest into ``out``, by way of ``scratch`` if that is a URL; each process writes what it says to a
    file in ``said``. ``elsewhere`` is where the last process looks for the folder, if not there. With several
    ``nodes`` the processes are on as many machines, and each machine has a folder below ``scratch``.
    """

    config: HarvestConfig
    out: str
    said: Path
    scratch: Path | None = None
    elsewhere: str | None = None
    extend: Path | None = None
    nodes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def said_by(self, rank: int) -> Path:
        return self.said / f"{rank}.txt"

    def scratch_of(self, rank: int, size: int) -> Path | None:
        if self.scratch is None or self.nodes == 1:
            return self.scratch
        return self.scratch / f"node{rank * self.nodes // size}"


def into_folder(config: HarvestConfig, path: Path) -> Harvest:
    said = path.with_name(f"{path.name}-said")
    said.mkdir(exist_ok=True)
    return Harvest(config, str(path), said)


def start(
    processes: ForkServerContext, size: int, harvest: Harvest, mishap: Mishap | None = None
) -> list[BaseProcess]:
    """Start a harvest of ``size`` processes."""
    port = free_port()
    started: list[BaseProcess] = []
    for rank in range(size):
        own = mishap if mishap is not None and mishap.rank == rank else None
        process = processes.Process(target=_work, args=(rank, size, port, harvest, own))
        process.start()
        started.append(process)
    return started


def run(
    processes: ForkServerContext, size: int, harvest: Harvest, mishap: Mishap | None = None
) -> list[Ended]:
    """Start one, wait for all processes, and return how each ended."""
    deadline = time.monotonic() + SECONDS
    ended = []
    for rank, process in enumerate(start(processes, size, harvest, mishap)):
        process.join(deadline - time.monotonic())
        assert process.exitcode is not None, f"process {rank} hangs"
        ended.append(Ended(process.exitcode, "", harvest.said_by(rank).read_text()))
    return ended


def _work(rank: int, size: int, port: int, harvest: Harvest, mishap: Mishap | None) -> None:
    with harvest.said_by(rank).open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.update(environment_of(rank, size, port, harvest.nodes) | harvest.environment)
    import torch

    from saecache.common.errors import SaecacheError
    from saecache.distributed import join_world
    from saecache.harvest.job import feed, shared_folder
    from saecache.harvest.runner import run as run_harvest
    from saecache.store.derived import replay
    from saecache.store.writing import spills

    torch.set_num_threads(1)
    if harvest.nodes > 1:
        shared_folder._PATIENCE_SECONDS = 0.5  # a folder that another machine does not have never comes
    feed.ROUND_TOKENS = 1  # one step of each process
    spills.WINDOW_BYTES = 1 << 17  # of two shards and a part
    replay._BLOCK_BYTES, replay.COMMIT_BYTES = 1 << 15, 1 << 16  # many rounds of copying, with commits
    os.fsync = lambda _descriptor: None  # type: ignore[assignment]  # only a power cut would notice
    if mishap is not None:
        _provoke(mishap)
    try:
        with join_world():
            out = harvest.elsewhere if harvest.elsewhere and rank == size - 1 else harvest.out
            scratch = harvest.scratch_of(rank, size)
            run_harvest(harvest.config, out, scratch=scratch, extend=harvest.extend)
    except KeyboardInterrupt:
        sys.exit(130)
    except SaecacheError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_status)


def environment_of(rank: int, size: int, port: int, nodes: int = 1) -> dict[str, str]:
    mine = [other for other in range(size) if other * nodes // size == rank * nodes // size]
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": mine.index(rank), "LOCAL_WORLD_SIZE": len(mine)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SAECACHE_TIMEOUT": 300}
    return {name: str(value) for name, value in (values | meeting).items()}


def _provoke(mishap: Mishap) -> None:
    from saecache.harvest.job import reading
    from saecache.store.derived import replay
    from saecache.store.writing import spill

    def signal_oneself() -> None:
        os.kill(os.getpid(), signal.SIGKILL if mishap.kind == "kill" else signal.SIGTERM)

    if mishap.seconds is not None:
        threading.Timer(mishap.seconds, signal_oneself).start()
        return
    if mishap.copied is not None:
        left, encode = mishap.copied, replay._RowCopy.__call__

        def copy(self: Any, first: int, last: int) -> int:
            nonlocal left
            left -= 1
            if left == 0:
                signal_oneself()
            return encode(self, first, last)

        replay._RowCopy.__call__ = copy  # type: ignore[method-assign]
        return
    if mishap.steps is None:
        replace, done = Path.replace, False

        def replaced(self: Path, target: Any) -> Path:
            nonlocal done
            path = replace(self, target)
            if "rows" in path.parts and not done:  # a second signal would stop it at once
                done = True
                signal_oneself()
            return path

        Path.replace = replaced  # type: ignore[method-assign]
        return
    rows, taken = reading.ActivationReader.rows, 0

    def mishap_at_last(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        found = rows(self, *arguments)
        if taken != mishap.steps:
            return found
        if mishap.kind == "nan":
            return {hook: x * float("nan") for hook, x in found.items()}
        if mishap.kind == "full":
            spill.write_all = _no_space  # type: ignore[assignment]
            return found
        signal_oneself()
        return found

    reading.ActivationReader.rows = mishap_at_last  # type: ignore[method-assign]


def _no_space(*_: Any) -> None:
    import errno

    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
