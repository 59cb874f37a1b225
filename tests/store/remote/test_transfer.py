"""Limits and failures of many transfers at once."""

import itertools
import threading
import time
from pathlib import Path

import pytest

from saecache.store import UsageError
from saecache.store.remote.push import Push
from saecache.store.remote.transfer import StoppedError, Traffic

from ...killing import DEADLINE_SECONDS


def test_never_more_at_once_than_asked_for() -> None:
    lock, running, most = threading.Lock(), 0, 0
    three, begun = threading.Barrier(3, timeout=DEADLINE_SECONDS), itertools.count()

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if next(begun) < 3:
            three.wait()  # the first three are there at once
        time.sleep(0.002)
        with lock:
            running -= 1

    Traffic(concurrency=3).run([task] * 40)
    assert most == 3


def test_the_first_failure_stops_the_others() -> None:
    traffic = Traffic(concurrency=2)
    stopped = threading.Event()
    begun = threading.Event()

    def long() -> None:
        begun.set()
        try:
            while True:
                traffic.moved(1)
                time.sleep(0.001)
        except StoppedError:
            stopped.set()
            raise

    def bad() -> None:
        begun.wait()
        raise ValueError("this one")

    never = pytest.fail
    with pytest.raises(ValueError, match="this one"):
        traffic.run([long, bad, *[lambda: never("began after the failure")] * 5])
    assert stopped.is_set()


def test_bandwidth_is_of_all_together(team: str, cache_path: Path) -> None:
    moved = 0

    def count(number: int) -> None:
        nonlocal moved
        moved += number

    total = Push(cache_path, f"{team}/c").plan().moved_bytes
    started = time.monotonic()
    Push(cache_path, f"{team}/c", Traffic(8, total / 1.0, count)).run()
    seconds = time.monotonic() - started
    assert 0.8 < seconds < DEADLINE_SECONDS
    assert moved == total


@pytest.mark.parametrize(("settings", "words"), [((0, None), "--concurrency"), ((1, 0.0), "--max-bandwidth")])
def test_impossible_limits(settings: tuple[int, float | None], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Traffic(*settings)
