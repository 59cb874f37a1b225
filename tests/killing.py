"""Runs that are killed, at a moment of their own or after some seconds."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 900.0  # of what a busy machine does slowly; after this it hangs

_FORKING = """
import json, os, signal, sys, time

for line in sys.stdin:
    arguments, seconds = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = 1
        try:
            work(*arguments)
            status = 0
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    ended = 0
    while not ended and time.monotonic() < until:
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@contextmanager
def killed_runs(prepare: str, *given: str) -> Iterator[Callable[..., int]]:
    """Within it: ``run(*arguments, seconds=...)`` runs ``work(*arguments)`` and kills it after so long.

    One process imports everything, and forks a child for each run.

    It returns the exit status: -9, or what it was when ``work`` was faster.

    Args:
        prepare: code that defines ``work``, whose arguments are texts and numbers.
        given: ``sys.argv[1:]`` of that code.
    """
    command = [sys.executable, "-c", prepare + _FORKING, *given]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        stdin, stdout = parent.stdin, parent.stdout
        assert stdin and stdout

        def run(*arguments: str | float, seconds: float) -> int:
            print(json.dumps([arguments, seconds]), file=stdin, flush=True)
            return int(stdout.readline())

        yield run
        stdin.close()


def act_when(moment: Callable[[], object], act: Callable[[], None]) -> None:
    """In this process: call ``act`` right after the first file that gets its name once ``moment()`` is true.

    A watcher in another process may be too late on a busy machine.
    """
    replace, acted = Path.replace, False

    def replaced(self: Path, target: Any) -> Path:
        nonlocal acted
        path = replace(self, target)
        if not acted and moment():
            acted = True
            act()
        return path

    Path.replace = replaced  # type: ignore[method-assign]
