"""Writing caches in processes that are killed, see ``crash_server.py``."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saecache.store import inspect_output

BATCH, COMMIT_EVERY = 20, 2
Run = Callable[..., dict[str, Any]]
"""Writes the cache ``path`` in a process of its own, killed as asked for."""


@contextmanager
def crash_server() -> Iterator[Run]:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("crash_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout

    def run(
        path: Path, *, batch: int = BATCH, commit_every: int = COMMIT_EVERY, **more: Any
    ) -> dict[str, Any]:
        request = {"path": str(path), "batch": batch, "commit_every": commit_every, **more}
        print(json.dumps(request), file=server.stdin, flush=True)
        answer: dict[str, Any] = json.loads(server.stdout.readline())
        return answer

    with server:
        yield run
        server.stdin.close()


def check(path: Path, reference: Path, contents: Callable[..., Any]) -> None:
    assert inspect_output(path) == "complete"
    assert contents(path) == contents(reference)
