"""A push or a pull in a process of its own, to be killed: ``killed.py push|pull CACHE URL LIMIT``.

Prints a line when it begins to move bytes. ``LIMIT`` is in bytes a second, so that there is time to kill it.
"""

import sys
from pathlib import Path

from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.transfer import Traffic


def main() -> None:
    what, path, url, limit = sys.argv[1:]
    traffic = Traffic(concurrency=3, max_bytes_per_second=float(limit) or None)
    mover = Push(Path(path), url, traffic) if what == "push" else Pull(url, Path(path), traffic)
    mover.plan()
    print("moving", flush=True)
    mover.run()


main()
