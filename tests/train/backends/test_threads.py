import threading

import pytest
import torch

from saecache.train.backends.threads import even_part, num_threads, run_parts, torch_on_one_thread

from ...killing import DEADLINE_SECONDS


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_every_part_once(threads, num_threads):
    threads(num_threads)
    lock, seen, names = threading.Lock(), [], set()

    def work(start, stop):
        with lock:
            seen.extend(range(start, stop))
            names.add(threading.current_thread().name)

    run_parts(work, 101, 10)
    assert sorted(seen) == list(range(101))
    assert len(names) <= num_threads


def test_nothing_to_do():
    run_parts(lambda start, stop: pytest.fail("no part"), 0, 10)


def test_torch_is_single_threaded_inside_and_as_before_outside(threads):
    threads(3)
    inside = []
    run_parts(lambda start, stop: inside.append(torch.get_num_threads()), 12, 1)
    assert inside == [1] * 12
    assert torch.get_num_threads() == 3


def test_parts_inside_parts(threads):
    threads(2)
    seen = []
    run_parts(lambda start, stop: run_parts(lambda a, b: seen.append((start, a)), 2, 1), 3, 1)
    assert sorted(seen) == [(i, j) for i in range(3) for j in range(2)]


def test_an_error_is_raised_when_all_have_stopped(threads):
    threads(2)
    running = []

    def work(start, stop):
        if start == 0:
            raise ValueError("part 0")
        running.append(start)
        torch.randn(200, 200) @ torch.randn(200, 200)
        running.remove(start)

    with pytest.raises(ValueError, match="part 0"):
        run_parts(work, 50, 1)
    assert running == []


def test_even_part(threads):
    threads(2)
    assert even_part(8000) == 1000
    assert even_part(10) == 64


def test_torch_on_one_thread_and_parts_on_all(threads):
    threads(3)
    inside = []
    with torch_on_one_thread():
        assert (torch.get_num_threads(), num_threads()) == (1, 3)
        with torch_on_one_thread():  # nesting changes nothing
            assert (torch.get_num_threads(), num_threads()) == (1, 3)
        meeting = threading.Barrier(3, timeout=DEADLINE_SECONDS)  # three parts at once, or none gets past it
        run_parts(lambda start, stop: inside.append((meeting.wait(), num_threads())), 3, 1)
    assert sorted(inside) == [(0, 1), (1, 1), (2, 1)]
    assert (torch.get_num_threads(), num_threads()) == (3, 3)


def test_torch_has_its_threads_back_after_an_error(threads):
    threads(2)
    with pytest.raises(ValueError, match="inside"), torch_on_one_thread():
        raise ValueError("inside")
    assert (torch.get_num_threads(), num_threads()) == (2, 2)
