"""Start the processes of a run as torchrun does, each with its own environment, and look at how they end."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 600.0  # until processes count as stuck; far more than they need


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    status: int
    output: str
    errors: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start(
    size: int,
    arguments: Sequence[str],
    folder: Path,
    own: Sequence[Mapping[str, str]] | None = None,
    **environment: str,
) -> list[subprocess.Popen[str]]:
    """Start ``size`` processes ``python <arguments>`` in ``folder`` that meet each other.

    ``own`` has what each of them finds in its environment beside ``environment``.
    """
    port = str(free_port())
    processes = []
    for rank in range(size):
        placement = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=os.environ | placement | environment | (dict(own[rank]) if own else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def wait(processes: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """Wait for all, and return how each ended."""
    ended = []
    for process in processes:
        output, errors = process.communicate(timeout=SECONDS)
        ended.append(Ended(process.returncode, output, errors))
    return ended


def run(size: int, arguments: Sequence[str], folder: Path, **environment: str) -> list[Ended]:
    """Start processes and wait for them; they must all succeed."""
    ended = wait(start(size, arguments, folder, **environment))
    for rank, one in enumerate(ended):
        assert one.status == 0, f"process {rank} ended with {one.status}: {one.errors[-3000:]}"
    return ended
