"""Reading, running and writing at once: order, failures, and the stop in between."""

import threading
import time
from collections.abc import Iterator
from itertools import takewhile

import pytest

from saecache.harvest.job.stages import run_overlapped

from ...killing import DEADLINE_SECONDS


def as_they_are(items: Iterator[int]) -> Iterator[int]:
    return items


def numbers(count: int, fail_at: int | None = None) -> Iterator[int]:
    for i in range(count):
        if i == fail_at:
            raise LookupError(f"no item {i}")
        yield i


def test_everything_in_order() -> None:
    written: list[int] = []
    run_overlapped(numbers(50), as_they_are, lambda i: i * i, written.append)
    assert written == [i * i for i in range(50)]


def test_stages_overlap() -> None:
    """Item by item the three stages wait for each other: one after the other, they would wait forever."""
    together = threading.Barrier(3, timeout=DEADLINE_SECONDS)
    count = 20
    met: list[int] = []

    def meet(number: int) -> None:
        """Reads item ``number`` + 2, transforms the one after ``number`` and consumes it, all at once."""
        if 0 <= number < count - 2:
            together.wait()
            met.append(number)

    def read() -> Iterator[int]:
        for number in range(count):
            meet(number - 2)
            yield number

    def transform(number: int) -> int:
        meet(number - 1)
        return number

    run_overlapped(read(), as_they_are, transform, meet)
    assert sorted(met) == sorted(3 * list(range(count - 2)))


def test_reading_stays_only_a_little_ahead() -> None:
    read: list[int] = []
    most_ahead = 0

    def items() -> Iterator[int]:
        for i in range(30):
            read.append(i)
            yield i

    def transform(i: int) -> int:
        nonlocal most_ahead
        time.sleep(0.002)
        most_ahead = max(most_ahead, len(read) - i)
        return i

    run_overlapped(items(), as_they_are, transform, lambda _: None, depth=2)
    assert most_ahead <= 4


def test_a_failing_source_comes_after_what_it_gave() -> None:
    written: list[int] = []
    with pytest.raises(LookupError, match="no item 7"):
        run_overlapped(numbers(20, fail_at=7), as_they_are, lambda i: i, written.append)
    assert written == list(range(7))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_transform_leaves_what_was_done_written(error: type[BaseException]) -> None:
    written: list[int] = []

    def transform(i: int) -> int:
        if i == 9:
            raise error
        return i

    def consume(i: int) -> None:
        time.sleep(0.002)
        written.append(i)

    with pytest.raises(error):
        run_overlapped(numbers(20), as_they_are, transform, consume)
    assert written == list(range(9))


def test_nothing_is_written_after_a_failed_write() -> None:
    written: list[int] = []

    def consume(i: int) -> None:
        time.sleep(0.002)
        if i == 4:
            raise OSError("disk full")
        written.append(i)

    with pytest.raises(OSError, match="disk full"):
        run_overlapped(numbers(100), as_they_are, lambda i: i, consume)
    assert written == [0, 1, 2, 3]


def test_a_stop_ends_between_items() -> None:
    written: list[int] = []
    run_overlapped(
        numbers(100), lambda items: takewhile(lambda _: len(written) < 5, items), lambda i: i, written.append
    )
    assert written == list(range(len(written)))
    assert 5 <= len(written) < 15
