"""Everything that a network, a server or a disk does, during push, pull and verify of a whole cache.

After each the command succeeds, at once or when it is run again, with equal bytes; or it stops and says why.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import SaecacheError, UsageError, inspect_output
from saecache.store.remote import Patience
from saecache.store.remote.cache_objects import ROOT, find_root
from saecache.store.remote.places.by_url import open_remote_folder
from saecache.store.remote.places.failures import AccessError, RemoteError
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.transfer import Traffic
from saecache.store.remote.verify import verify_remote

from .conftest import PASSING, QUICK
from .proxy import Proxy

FAULTS: dict[str, dict[str, Any]] = {
    "500 burst": {"kind": "status", "status": 500, "times": 12},
    "503 burst": {"kind": "status", "status": 503, "code": "SlowDown", "times": 12},
    "429 burst": {"kind": "status", "status": 429, "code": "TooManyRequests", "times": 6},
    "reset in the body": {"kind": "reset", "after": 60, "times": 6},
    "reset before the answer": {"kind": "lost_answer", "times": 6},
    "truncated body": {"kind": "truncate", "after": 60, "times": 6},
    "short body": {"kind": "short", "after": 60, "times": 3},
    "stall": {"kind": "stall", "after": 60, "times": 2, "seconds": 5},
    "flipped byte down": {"kind": "flip", "after": 30, "times": 3},
    "flipped byte up": {"kind": "flip_request", "after": 30, "times": 3},
    "wrong ETag": {"kind": "etag", "times": 6},
}
READING = {name: fault for name, fault in FAULTS.items() if name != "flipped byte up"}
LASTING: dict[str, tuple[dict[str, Any], type[SaecacheError], str]] = {
    "expired": ({"status": 400, "code": "ExpiredToken"}, AccessError, "expired"),
    "forbidden": ({"status": 403, "code": "AccessDenied"}, AccessError, "not allowed"),
    "no bucket": ({"status": 404, "code": "NoSuchBucket"}, AccessError, "no such bucket"),
    "failing": ({"status": 503, "code": "SlowDown"}, RemoteError, "kept failing"),
}


def until_done(command: Callable[[Patience], Any], proxy: Proxy) -> None:
    """Run a command, and run it again as its errors say; then without faults."""
    for _ in range(4):
        try:
            command(QUICK)
            return
        except UsageError:
            raise
        except SaecacheError as error:
            assert str(error)
    proxy.clear()
    command(Patience())


@pytest.fixture
def pushed(team: str, cache_path: Path) -> str:
    Push(cache_path, f"{team}/c").run()
    return f"{team}/c"


@pytest.mark.parametrize("skip", [0, 9], ids=["at once", "later"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_push(proxy: Proxy, team: str, cache_path: Path, fault: dict[str, Any], skip: int) -> None:
    met = proxy.add(skip=skip, path="/c", **fault)
    until_done(lambda patience: Push(cache_path, f"{team}/c", patience=patience).run(), proxy)
    assert met.met
    proxy.clear()
    assert verify_remote(f"{team}/c").ok


@pytest.mark.parametrize("fault", READING.values(), ids=READING)
def test_pull(
    pushed: str,
    proxy: Proxy,
    cache_path: Path,
    tmp_path: Path,
    fault: dict[str, Any],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    met = proxy.add(method="GET", **({"path": "/c/"} | fault))
    until_done(lambda patience: Pull(pushed, tmp_path / "copy", patience=patience).run(), proxy)
    assert met.met
    assert contents(tmp_path / "copy") == contents(cache_path)


@pytest.mark.parametrize("fault", READING.values(), ids=READING)
def test_verify(pushed: str, proxy: Proxy, fault: dict[str, Any]) -> None:
    """What passes is not taken for damage."""
    met = proxy.add(method="GET", **({"path": r"/c/(rows|heldout|tokens)"} | fault | {"times": 1}))
    assert verify_remote(pushed, patience=PASSING).problems == []
    assert met.met


@pytest.mark.parametrize(("answer", "kind", "words"), LASTING.values(), ids=LASTING)
@pytest.mark.parametrize("skip", [0, 25], ids=["at once", "in the middle"])
def test_what_lasts_stops_push_and_pull(
    pushed: str,
    proxy: Proxy,
    team: str,
    cache_path: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    answer: dict[str, Any],
    kind: type[SaecacheError],
    words: str,
    skip: int,
) -> None:
    proxy.add("status", times=10**6, skip=skip, **answer)
    traffic = Traffic(concurrency=2)
    with pytest.raises(kind, match=words):
        Push(cache_path, f"{team}/d", traffic, patience=QUICK).run()
    proxy.clear()
    assert find_root(open_remote_folder(f"{team}/d")) is None
    Push(cache_path, f"{team}/d").run()
    assert verify_remote(f"{team}/d").ok

    proxy.add("status", times=10**6, skip=min(skip, 10), **answer)
    with pytest.raises(kind, match=words):
        Pull(pushed, tmp_path / "copy", Traffic(concurrency=2), patience=QUICK).run()
    assert inspect_output(tmp_path / "copy") != "complete"
    assert not (tmp_path / "copy" / ROOT).exists()
    proxy.clear()
    Pull(pushed, tmp_path / "copy").run()
    assert contents(tmp_path / "copy") == contents(cache_path)


def test_one_stubborn_object_stops_the_pull_and_the_rest_is_kept(
    pushed: str, proxy: Proxy, cache_path: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    proxy.add("flip", method="GET", path="rows/token/c/0", times=10**6)
    with pytest.raises(SaecacheError, match="rows/token/c/0 is damaged"):
        Pull(pushed, tmp_path / "copy", Traffic(concurrency=1), patience=PASSING).run()
    assert not (tmp_path / "copy" / "rows" / "token" / "c" / "0").exists()
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    proxy.clear()
    again = Pull(pushed, tmp_path / "copy").run()
    assert 0 < again.moved_objects < again.objects
    assert contents(tmp_path / "copy") == contents(cache_path)
