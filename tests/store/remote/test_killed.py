"""``kill -9`` of push and pull at any moment, then the same again: the same bytes as without it.

Half of the processes die by the clock, half at a request of their own. ``SAECACHE_LONG_TESTS=1`` kills many
more.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saecache.store import IncompleteCacheError, inspect_output, verify_cache
from saecache.store.remote.cache_objects import PROVENANCE, find_root
from saecache.store.remote.places.by_url import open_remote_folder
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.verify import verify_remote

from .proxy import Proxy

LONG = bool(os.environ.get("SAECACHE_LONG_TESTS"))
ROUNDS, DEATHS = (60, 2) if LONG else (5, 1)  # rounds, and how often each is killed before it may end
SECONDS = 0.5  # how long a whole transfer takes, where the limit is what decides
Contents = Callable[[Path], dict[str, bytes]]


def start(what: str, path: Path, url: str) -> subprocess.Popen[str]:
    limit = sum(file.stat().st_size for file in Path(path).rglob("*")) / SECONDS if what == "push" else 5e5
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, script, what, path, url, str(limit)]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def kill_somewhere(what: str, path: Path, url: str, proxy: Proxy, choose: random.Random) -> int:
    """Start it and kill it; returns its exit status: -9, or 0 when it was faster."""
    process = start(what, path, url)
    with process:
        if choose.random() < 0.5:
            assert process.stdout
            process.stdout.readline()
            time.sleep(choose.uniform(0, SECONDS))
        else:
            fatal, requests = choose.randrange(1, 60 if what == "push" else 30), itertools.count(1)

            def die(_method: str, _path: str) -> None:
                if next(requests) == fatal:
                    process.kill()

            proxy.before = die
            process.wait()
            proxy.before = None
        process.send_signal(signal.SIGKILL)
    return process.returncode


def test_push(proxy: Proxy, team: str, cache_path: Path, contents: Contents) -> None:
    choose, deaths = random.Random(11), 0
    for number in range(ROUNDS):
        url = f"{team}/{number}"
        for _ in range(DEATHS):
            deaths += kill_somewhere("push", cache_path, url, proxy, choose) == -signal.SIGKILL
            if find_root(open_remote_folder(url)) is not None:
                assert verify_remote(url).ok
        Push(cache_path, url).run()
        assert verify_remote(url).ok
        assert {info.key for info in open_remote_folder(url).objects()} == {*contents(cache_path), PROVENANCE}
    assert deaths > ROUNDS * DEATHS / 4


def test_pull(proxy: Proxy, team: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    choose, deaths = random.Random(12), 0
    url = f"{team}/c"
    Push(cache_path, url).run()
    for number in range(ROUNDS):
        path = tmp_path / str(number)
        for _ in range(DEATHS):
            deaths += kill_somewhere("pull", path, url, proxy, choose) == -signal.SIGKILL
            check_not_half_visible(path, contents, cache_path)
        Pull(url, path).run()
        assert contents(path) == contents(cache_path)
        assert verify_cache(path).ok
    assert deaths > ROUNDS * DEATHS / 4


def check_not_half_visible(path: Path, contents: Contents, cache_path: Path) -> None:
    """A folder that opens as a cache is whole; what has a name in it is whole."""
    if inspect_output(path) == "complete":
        found = {key: value for key, value in contents(path).items() if not key.startswith(".pulling")}
        assert found == contents(cache_path)
        return
    if (path / ".pulling").is_dir():
        with pytest.raises(IncompleteCacheError):
            verify_cache(path)
    expected = contents(cache_path)
    for key, value in contents(path).items() if path.exists() else ():
        if not key.startswith(".pulling") and not key.endswith(".tmp"):
            assert value == expected[key]
