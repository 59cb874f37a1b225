"""Two people, one place: what happens when commands meet. The README of the store states the outcomes."""

import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CorruptCacheError, IncompleteCacheError, SaecacheError, UsageError, inspect_output
from saecache.store.remote.cache_objects import (
    HARVEST_CLAIM,
    PROVENANCE,
    ROOT,
    UNFINISHED,
    find_root,
    read_root,
)
from saecache.store.remote.places.by_url import open_remote_folder
from saecache.store.remote.places.failures import RemoteChangedError, RemoteError
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.transfer import Traffic
from saecache.store.remote.verify import verify_remote

from ...killing import DEADLINE_SECONDS
from .conftest import PASSING, QUICK
from .proxy import Proxy

Contents = Callable[[Path], dict[str, bytes]]
OVERTAKEN_AT = range(1, 90) if "SAECACHE_LONG_TESTS" in os.environ else (1, 5, 12, 30, 50)  # requests


@pytest.fixture
def url(team: str) -> str:
    return f"{team}/c"


def at_request(proxy: Proxy, number: int, action: Callable[[], Any], match: str = "") -> None:
    """Do ``action`` once, when so many requests whose method and path hold ``match`` have come."""
    lock, count = threading.Lock(), 0

    def before(method: str, path: str) -> None:
        nonlocal count
        with lock:
            count += match in f"{method} {path}"
            if count != number:
                return
            count += 1
        action()

    proxy.before = before


def directly(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """What is opened from now on does not go through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.upstream)


def test_two_pushes_of_one_cache(url: str, cache_path: Path, contents: Contents) -> None:
    """Both end well, whoever is first at each object."""
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(lambda _: Push(cache_path, url).run(), range(3)))
        assert {result.url for result in done} == {url}
        assert verify_remote(url).ok
        keys = {info.key for info in open_remote_folder(url).objects()}
        assert keys == {*contents(cache_path), PROVENANCE}
        Removal(url).run()


@pytest.mark.parametrize("number", OVERTAKEN_AT)
def test_a_push_overtaken_by_another_of_the_same_cache(
    proxy: Proxy, url: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    push = Push(cache_path, url, Traffic(concurrency=2))
    directly(monkeypatch, proxy)
    at_request(proxy, number, lambda: Push(cache_path, url).run())
    push.run()
    assert verify_remote(url).ok
    assert UNFINISHED not in {info.key for info in open_remote_folder(url).objects()}


def test_two_pushes_of_different_caches_to_one_place(url: str, cache_path: Path, other_cache: Path) -> None:
    """Whoever claims the place wins; the other is told, and has overwritten nothing."""

    def push(path: Path) -> Path | None:
        try:
            Push(path, url).run()
        except UsageError as error:
            assert "holds another cache" in str(error) or "unfinished push" in str(error)
            return None
        return path

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            winners = [path for path in pool.map(push, (cache_path, other_cache)) if path]
        assert len(winners) == 1
        assert verify_remote(url).ok
        assert open_remote_folder(url).get(ROOT, 1 << 20) == (winners[0] / ROOT).read_bytes()
        Removal(url).run()


def test_a_server_without_conditional_writes(
    url: str, cache_path: Path, other_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    Push(cache_path, url).run()
    assert verify_remote(url).ok
    with pytest.raises(UsageError, match="holds another cache"):
        Push(other_cache, url).run()
    open_remote_folder(url).delete([ROOT])
    open_remote_folder(url).put(UNFINISHED, (cache_path / ROOT).read_bytes())
    with pytest.raises(UsageError, match="unfinished push"):
        Push(other_cache, url).run()
    Push(cache_path, url).run()
    Removal(url).run()
    assert not list(open_remote_folder(url).objects())


def test_a_pull_during_a_push(
    proxy: Proxy,
    url: str,
    cache_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
) -> None:
    """Until the manifest is there, there is nothing to pull; afterwards a second push changes nothing."""
    push = Push(cache_path, url)
    directly(monkeypatch, proxy)
    refused: list[Exception] = []

    def pull() -> None:
        with pytest.raises(IncompleteCacheError, match="pushing or removing") as caught:
            Pull(url, tmp_path / "copy")
        refused.append(caught.value)

    at_request(proxy, 25, pull)
    push.run()
    assert len(refused) == 1
    pull_again = Pull(url, tmp_path / "copy", Traffic(concurrency=2, max_bytes_per_second=3e5))
    pull_again.plan()
    with ThreadPoolExecutor(2) as pool:
        moving = pool.submit(pull_again.run)
        while not moving.done():
            open_remote_folder(url).delete(["tokens/zarr.json"])  # so that there is something to push
            Push(cache_path, url, verify=True).run()
        try:
            moving.result()
        except (RemoteChangedError, CorruptCacheError):
            Pull(url, tmp_path / "copy").run()
    assert contents(tmp_path / "copy") == contents(cache_path)


@pytest.mark.parametrize("number", [2, 10, 20])
def test_a_removal_during_a_pull(
    proxy: Proxy, url: str, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Push(cache_path, url).run()
    pull = Pull(url, tmp_path / "copy", Traffic(concurrency=2))
    directly(monkeypatch, proxy)
    at_request(proxy, number, lambda: Removal(url).run(), "GET")
    with pytest.raises(RemoteChangedError, match="was removed while it was pulled"):
        pull.run()
    assert inspect_output(tmp_path / "copy") != "complete"
    with pytest.raises(UsageError, match="there is nothing there"):
        Pull(url, tmp_path / "copy")
    Push(cache_path, url).run()  # the same cache comes back: the pull goes on
    Pull(url, tmp_path / "copy").run()
    assert inspect_output(tmp_path / "copy") == "complete"


def test_a_removal_that_takes_only_the_provenance_of_a_pull(
    proxy: Proxy, url: str, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache without one can be pulled, so its absence alone would pass for a whole copy."""
    Push(cache_path, url).run()
    pull = Pull(url, tmp_path / "copy", Traffic(concurrency=1))
    directly(monkeypatch, proxy)
    at_request(proxy, 1, lambda: Removal(url).run(), PROVENANCE)
    with pytest.raises(RemoteChangedError, match="was removed while it was pulled"):
        pull.run()
    assert inspect_output(tmp_path / "copy") != "complete"


def test_a_replacement_during_a_pull(
    proxy: Proxy,
    url: str,
    cache_path: Path,
    other_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
) -> None:
    Push(cache_path, url).run()
    one_at_a_time = Traffic(concurrency=1)  # a second request would see the place while it is empty
    pull = Pull(url, tmp_path / "copy", one_at_a_time)
    directly(monkeypatch, proxy)

    def replace() -> None:
        Removal(url).run()
        Push(other_cache, url).run()

    at_request(proxy, 10, replace, "GET")
    with pytest.raises(RemoteChangedError, match="replaced by another cache"):
        pull.run()
    Pull(url, tmp_path / "copy").run()  # files of the first cache are not taken for the second's
    assert contents(tmp_path / "copy") == contents(other_cache)


@pytest.mark.parametrize("number", [5, 20, 40, 60, 75, 85, 90])
def test_a_removal_during_a_push(
    proxy: Proxy, url: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The removal wins, or the push does; there is never a manifest without its objects."""
    push = Push(cache_path, url, Traffic(concurrency=2))
    directly(monkeypatch, proxy)

    def remove() -> None:
        try:
            Removal(url).run()
        except UsageError:
            return  # nothing was there yet

    at_request(proxy, number, remove)
    try:
        push.run()
    except SaecacheError as error:
        assert "changed during the push" in str(error) or "no such object" in str(error)
        assert find_root(open_remote_folder(url)) is None
    else:
        assert verify_remote(url).ok
    Push(cache_path, url).run()
    assert verify_remote(url).ok


def test_a_manifest_written_after_its_removal_is_taken_back(
    proxy: Proxy, url: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment: everything is there, the manifest is on its way, and the removal runs before it."""
    push = Push(cache_path, url)
    directly(monkeypatch, proxy)
    at_request(proxy, 1, lambda: Removal(url).run(), "PUT /team/" + url.split("/", 3)[3] + "/zarr.json")
    with pytest.raises(RemoteChangedError, match="changed during the push"):
        push.run()
    assert find_root(open_remote_folder(url)) is None


def test_two_pulls_into_one_folder(url: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    Push(cache_path, url).run()
    started, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        started.set()
        go_on.wait(DEADLINE_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Pull(url, tmp_path / "copy", Traffic(2, None, hold)).run)
        try:
            assert started.wait(DEADLINE_SECONDS)
            with pytest.raises(UsageError, match="copy is being written by another process"):
                Pull(url, tmp_path / "copy").run()
        finally:
            go_on.set()
        first.result()
    assert contents(tmp_path / "copy") == contents(cache_path)


def test_everybody_at_once(url: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    """Two pushes, a removal and a pull at random moments: a manifest never stands without its objects."""
    choose = random.Random(3)

    def later(seconds: float, command: Callable[[], Any]) -> None:
        time.sleep(seconds)
        try:
            command()
        except SaecacheError as error:
            assert str(error)

    for number in range(60 if os.environ.get("SAECACHE_LONG_TESTS") else 4):
        copy = tmp_path / str(number)
        commands: list[Callable[[], Any]] = [
            lambda: Push(cache_path, url).run(),
            lambda: Push(cache_path, url).run(),
            lambda: Removal(url).run(),
            lambda copy=copy: Pull(url, copy).run(),  # type: ignore[misc]
        ]
        with ThreadPoolExecutor(len(commands)) as pool:
            running = [pool.submit(later, choose.uniform(0, 0.5), command) for command in commands]
        for future in running:
            future.result()
        if find_root(open_remote_folder(url)) is not None:
            assert verify_remote(url).ok
        if inspect_output(copy) == "complete":
            assert contents(copy) == contents(cache_path)
    Push(cache_path, url).run()
    assert verify_remote(url).ok


@pytest.mark.parametrize("times", [1, 10**6])
def test_a_removal_does_not_believe_a_listing_that_hides_its_own_claim(
    proxy: Proxy, url: str, cache_path: Path, times: int
) -> None:
    Push(cache_path, url).run()
    removal = Removal(url, patience=PASSING if times == 1 else QUICK)
    proxy.add("page", method="GET", path="list-type", times=times, skip=1)
    if times == 1:
        removal.run()
    else:
        with pytest.raises(RemoteError, match=r"does not show \.unfinished\.json"):
            removal.run()
        proxy.clear()
        assert Removal(url).plan().state == "unfinished"
        Removal(url).run()
    assert not open_remote_folder(url).objects()


@pytest.mark.parametrize("kind", ["lost_answer", "reset", "garbage", "empty"])
def test_deletes_are_repeated(proxy: Proxy, url: str, cache_path: Path, kind: str) -> None:
    """A push and a removal ended with an error when the answer to one delete did not come."""
    met = proxy.add(kind, method="POST", path="delete", after=0, times=2)
    Push(cache_path, url).run()
    assert met.met == 2
    again = proxy.add(kind, method="POST", path="delete", after=0, times=2)
    Removal(url).run()
    assert again.met == 2
    assert not open_remote_folder(url).objects()


@pytest.mark.parametrize("status", [501, 405])
def test_servers_that_remove_one_object_at_a_time(
    proxy: Proxy, url: str, cache_path: Path, status: int
) -> None:
    """A push to such a server went on for minutes and failed at its last request."""
    met = proxy.add(
        "status", method="POST", path="delete", status=status, code="NotImplemented", times=1_000_000
    )
    Push(cache_path, url).run()
    assert met.met == 1
    Removal(url).run()
    assert met.met == 2
    assert not open_remote_folder(url).objects()


def test_a_request_that_a_server_does_not_know_is_not_repeated(
    proxy: Proxy, url: str, cache_path: Path
) -> None:
    met = proxy.add(
        "status", method="PUT", path="unfinished", status=501, code="NotImplemented", times=1_000_000
    )
    with pytest.raises(RemoteError, match=r"does not support this request \(501 NotImplemented\)"):
        Push(cache_path, url).run()
    assert met.met == 1


def test_a_claim_that_a_finished_harvest_left_blocks_nothing(team: str, url: str, cache_path: Path) -> None:
    """Killed between its manifest and the end of its claim."""
    place = open_remote_folder(url)
    for command in ("push", "rm", "damaged"):
        Push(cache_path, url).run()
        root = read_root(place)
        place.put(HARVEST_CLAIM, json.dumps({"fingerprint": root.manifest.fingerprint}).encode())
        assert verify_remote(url).ok
        if command == "damaged":
            place.delete(["tokens/zarr.json"])
        if command != "rm":
            Push(cache_path, url).run()
            assert {info.key for info in place.objects()} == root.keys - {UNFINISHED, HARVEST_CLAIM}
        Removal(url).run()
        assert not place.objects()


def test_a_push_does_not_meet_a_harvest(url: str, cache_path: Path) -> None:
    open_remote_folder(url).put(HARVEST_CLAIM, json.dumps({"fingerprint": "0" * 64}).encode())
    with pytest.raises(UsageError, match="taken by a harvest"):
        Push(cache_path, url).run()
