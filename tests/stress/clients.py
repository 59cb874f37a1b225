"""The commands of a user as real processes, each with a deadline; any of them may be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saecache.store.remote import Patience

DEADLINE_SECONDS = 4 * (Patience().retry_seconds + Patience().upload_seconds)
"""Several requests of a command may use up their patience one after another; after this it hangs."""
_THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Client:
    """One command. ``status`` is None while it runs, negative after a signal."""

    words: list[str]
    log: Path
    pid: int = 0
    status: int | None = None

    def __post_init__(self) -> None:
        self.started, self.ended = threading.Event(), threading.Event()

    def kill(self) -> None:
        """``kill -9``, at once."""
        if not self.ended.is_set():
            os.kill(self.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        return self._printed(".out")

    @property
    def errors(self) -> str:
        return self._printed(".err")

    def _printed(self, name: str) -> str:
        path = self.log.with_name(self.log.name + name)
        return path.read_text(errors="replace") if path.exists() else ""


class Clients:
    """Starts commands in ``folder`` with the environment of a user of one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clients: list[Client] = []
        script = Path(__file__).with_name("forked.py")
        self._server = subprocess.Popen(
            [sys.executable, "-P", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | _THREADS,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, words: list[str], environment: dict[str, str], *, learn: bool = False) -> Client:
        client = Client(words, self.folder / f"log-{len(self._clients)}")
        self._clients.append(client)
        job = {
            "id": len(self._clients) - 1,
            "words": words,
            "environment": environment,
            "folder": str(self.folder),
            "log": str(client.log),
            "learn": learn,
        }
        assert self._server.stdin
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        self._server.stdin.flush()
        assert client.started.wait(DEADLINE_SECONDS), "no process was started"
        return client

    def wait(self, client: Client) -> int:
        """Its exit status.

        Raises:
            TimeoutError: it hangs.
        """
        if not client.ended.wait(DEADLINE_SECONDS):
            client.kill()
            client.ended.wait()
            raise TimeoutError(f"{' '.join(client.words)} had not ended after {DEADLINE_SECONDS:g} seconds")
        assert client.status is not None
        return client.status

    def run(self, words: list[str], environment: dict[str, str], *, learn: bool = False) -> Client:
        """Start it and wait for its end; with ``learn`` later commands need not import what it imported."""
        client = self.start(words, environment, learn=learn)
        self.wait(client)
        return client

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()

    def _read(self) -> None:
        assert self._server.stdout
        for line in self._server.stdout:
            report: dict[str, Any] = json.loads(line)
            client = self._clients[report["id"]]
            if "pid" in report:
                client.pid = report["pid"]
                client.started.set()
            else:
                client.status = report["status"]
                client.ended.set()
