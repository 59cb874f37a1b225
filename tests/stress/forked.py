"""Runs saecache commands as processes of their own: imports everything once, then forks a child for each.

Run as a script. Every line of stdin is ``{"id", "words", "environment", "folder", "log"}``. The script
answers on stdout with ``{"id", "pid"}`` when the child runs and ``{"id", "status"}`` when it has ended. What
the command prints goes to ``log`` + ``.out`` and ``.err``. Whoever knows the process id may kill the child.
With ``"learn": true`` the script imports what the command had to import, so that later children need not.
"""

import importlib
import json
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from saecache.cli import main


def run_command(job: dict[str, Any]) -> None:
    """In the child: become ``saecache WORDS``. Does not return."""
    for stream, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(job["log"] + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv = ["saecache", *job["words"]]
    status: int | str | None = 70
    try:
        main()
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:  # noqa: BLE001 - a stack trace is what the caller looks for
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if job["learn"]:
            modules_file(job).write_text(json.dumps(list(sys.modules)))
        os._exit(status if isinstance(status, int) else 1)


def modules_file(job: dict[str, Any]) -> Path:
    return Path(job["log"] + ".modules")


def learn(job: dict[str, Any]) -> None:
    """Import what the child of ``job`` imported. Imports alone start no threads, so forking stays sound."""
    for name in json.loads(modules_file(job).read_text()):
        with suppress(Exception):  # some modules can be imported by their own package only
            importlib.import_module(name)


def say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def serve() -> None:
    """Start what stdin asks for and report what ended, until stdin ends."""
    running: dict[int, dict[str, Any]] = {}
    lines = b""
    while True:
        if select.select([0], [], [], 0.005 if running else None)[0]:
            block = os.read(0, 1 << 16)
            if not block:
                return
            *jobs, lines = (lines + block).split(b"\n")
            for job in map(json.loads, jobs):
                child = os.fork()
                if child == 0:
                    run_command(job)
                running[child] = job
                say(id=job["id"], pid=child)
        for child in list(running):
            ended, state = os.waitpid(child, os.WNOHANG)
            if ended:
                job = running.pop(child)
                if job["learn"]:
                    learn(job)
                say(id=job["id"], status=os.waitstatus_to_exitcode(state))


if __name__ == "__main__":
    serve()
