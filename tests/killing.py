"""Runs that are killed: one process imports everything, and forks a child for each run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def killed_runs(prepare: str, *given: str) -> Iterator[Callable[..., int]]:
    """Within it: ``run(*arguments, seconds=...)`` runs ``work(*arguments)`` and kills it after so long.

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
