"""Forks a writer for every line of JSON on stdin, kills it where the line says, and prints how it ended.

One process imports everything once; its children are killed. A line is a JSON object with path, batch,
commit_every (or derive, see below), and kill_at: the child sends itself SIGKILL at so-and-so many changes of
the file system; or kill_after: the parent kills it after so many seconds. The answer has its status and the
changes it made. ``derive`` is the name of a command, ``from`` are the caches it takes, ``how`` its settings.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saecache.store import open_cache
from saecache.store.derived import replay
from saecache.store.derived.converting import convert_cache, parse_codec
from saecache.store.derived.merging import merge_caches
from saecache.store.derived.slicing import slice_cache

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
DERIVE: dict[str, Callable[..., object]] = {
    "merge": merge_caches,
    "slice": lambda sources, path, **how: slice_cache(*sources, path, **how),
    "convert": lambda sources, path, dtype, codec: convert_cache(
        *sources, path, dtype=dtype, codec=parse_codec(codec, None)
    ),
}
helpers = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
source = helpers["make_source"](sequences=60, hooks={"a": 24, "b": 8})
replay.COMMIT_BYTES, replay._BLOCK_BYTES = 1 << 12, 1 << 11  # many commits, in a small cache


def write(request: dict[str, Any]) -> None:
    if "derive" in request:
        sources = [open_cache(path) for path in request["from"]]
        DERIVE[request["derive"]](sources, request["path"], **request["how"])
        return
    helpers["write_cache"](
        Path(request["path"]),
        source,
        batch=request["batch"],
        commit_every=request["commit_every"],
        storage={"chunk_rows": 32, "shard_bytes": 1 << 14},
    )


def count_changes(kill_at: int | None, report: Path) -> None:
    """From now on count openings for writing, renames, removals; die at number ``kill_at``."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in CHANGES or (event == "open" and str(arguments[1]) in ("wb", "ab", "r+")):
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        elif event == "saecache.done":
            report.write_text(str(changes))

    sys.addaudithook(hook)


def serve() -> None:
    with tempfile.TemporaryDirectory() as folder:  # loads the kernels, once for all children
        write({"path": f"{folder}/warm", "batch": 20, "commit_every": None})
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        report = Path(request["path"]).with_name(f"changes-{number}")
        child = os.fork()
        if child == 0:
            if "kill_after" not in request:
                os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
                count_changes(request.get("kill_at"), report)
            status = 1
            try:
                write(request)
                sys.audit("saecache.done")
                status = 0
            finally:
                os._exit(status)
        if "kill_after" in request:
            time.sleep(request["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        changes = int(report.read_text()) if report.exists() else None
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "changes": changes}), flush=True)


if __name__ == "__main__":
    serve()
