"""Start the processes of a run as torchrun does, each with its own environment, and look at how they end.

They are forked from one process that has imported everything: most of what a short run costs are its imports.
The tests of torchrun itself start Python anew.
"""

import ctypes
import multiprocessing
import os
import random
import re
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from ..killing import DEADLINE_SECONDS

SECONDS = 4 * DEADLINE_SECONDS  # until processes count as stuck: several start and meet

_IMPORTS = [
    "saecache.cli",
    "saecache.commands.evaluate",
    "saecache.commands.stages",
    "saecache.commands.train",
    "saecache.distributed.launch",
    "saecache.evaluate.runner",
    "saecache.harvest.job.phases",
    "saecache.train.backends.compiled.backend",
    "saecache.train.runs.runner",
    "transformers.models.gpt_neox.modeling_gpt_neox",
]


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    status: int
    output: str
    errors: str


class Running(Protocol):
    """A process, as of :class:`subprocess.Popen`."""

    @property
    def returncode(self) -> int | None: ...

    def communicate(self, *, timeout: float) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Forked:
    """A process that was started here; what it prints is in ``files``, one for each of its two streams."""

    process: BaseProcess
    files: tuple[Path, Path]

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """Wait for it, and return what it printed."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"{self.process.name} hangs"
        output, errors = (file.read_text() for file in self.files)
        return output, errors

    def said(self) -> str:
        """What it has printed to stderr so far."""
        return self.files[1].read_text() if self.files[1].exists() else ""

    def kill(self) -> None:
        self.process.kill()


def forkserver() -> ForkServerContext:
    """The process that has imported everything, one for each test process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    return context


def free_port() -> int:
    """A port below those that the system gives to connections: none of them takes it before it is used."""
    for port in random.SystemRandom().sample(range(12_000, 32_000), 1000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def says_lost(text: str, rank: int) -> bool:
    """Whether ``text`` says that this process is gone. On a busy machine it may name others with it: who is
    silent for long once the connection is broken counts as gone, too.
    """
    return (
        re.search(rf"process(es)? ([0-9]+, )*{rank}(, [0-9]+)* of this run (is|are) gone", text) is not None
    )


def start(
    size: int,
    arguments: Sequence[str],
    folder: Path,
    own: Sequence[Mapping[str, str]] | None = None,
    **environment: str,
) -> list[Forked]:
    """Start ``size`` processes ``python <arguments>`` in ``folder`` that meet each other.

    ``arguments`` begin with a script, or with ``-m`` and a module. ``own`` has what each of the processes
    finds in its environment beside ``environment``.
    """
    return start_each([arguments] * size, folder, [environment | dict(o) for o in own or [{}] * size])


def start_each(
    arguments: Sequence[Sequence[str]],
    folder: Path,
    own: Sequence[Mapping[str, str]],
    namespaces: Sequence[Path] | None = None,
) -> list[Forked]:
    """The same with ``arguments`` of each process, and the network namespace that each of them is in."""
    port, size = str(free_port()), len(arguments)
    started = []
    for rank in range(size):
        placement = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        files = folder / f"{port}.{rank}.out", folder / f"{port}.{rank}.err"
        namespace = namespaces[rank] if namespaces else None
        variables = {**os.environ, **placement, **own[rank]}
        process = forkserver().Process(
            target=_run,
            args=(list(arguments[rank]), folder, variables, files, namespace),
            name=f"process {rank}",
        )
        process.start()
        started.append(Forked(process, files))
    return started


def _run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    files: tuple[Path, Path],
    namespace: Path | None,
) -> None:
    """In the process: become ``python <arguments>``."""
    if namespace is not None and ctypes.CDLL(None, use_errno=True).setns(os.open(namespace, os.O_RDONLY), 0):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace", str(namespace))
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def wait(processes: Sequence[Running]) -> list[Ended]:
    """Wait for all, and return how each ended."""
    ended = []
    for process in processes:
        output, errors = process.communicate(timeout=SECONDS)
        assert process.returncode is not None
        ended.append(Ended(process.returncode, output, errors))
    return ended


def run(size: int, arguments: Sequence[str], folder: Path, **environment: str) -> list[Ended]:
    """Start processes and wait for them; they must all succeed."""
    ended = wait(start(size, arguments, folder, **environment))
    for rank, one in enumerate(ended):
        assert one.status == 0, f"process {rank} ended with {one.status}: {one.errors[-3000:]}"
    return ended
