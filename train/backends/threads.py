"""A pool of threads for compiled loops, and for matrix products that such a loop follows.

The product of a block and its scan run on one thread, one after the other: the block is still in the core's
cache, no thread waits for another in between, and torch's own pool, whose idle threads spin, is not used.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process (a fork has no threads) and size

_threads: ContextVar[int | None] = ContextVar("threads", default=None)  # set while torch has only one thread

Part = Callable[[int, int], None]


def num_threads() -> int:
    """The number of parts that run at a time: torch's threads, as outside :func:`torch_on_one_thread`."""
    return _threads.get() or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Keep torch's operations on the calling thread inside the block; only :func:`run_parts` uses others.

    After each operation the threads of torch's pool spin for some milliseconds, waiting for the next one.
    This slows down the parts that run in between, by a seventh of a step with dead latents.
    """
    threads = torch.get_num_threads()
    if threads == 1:  # this is a thread of a pool, or such a block is open already
        yield
        return
    token = _threads.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _threads.reset(token)


def run_parts(work: Part, size: int, part: int) -> None:
    """Call ``work(start, stop)`` for consecutive parts of ``range(size)`` of length ``part`` or less.

    :func:`num_threads` parts run at a time, each with torch single-threaded. ``work`` must give the same
    result in any order of the parts. If parts fail, the first exception is raised once no part runs any more.
    """
    parts = [(start, min(start + part, size)) for start in range(0, size, part)]
    threads = num_threads()
    if min(threads, len(parts)) <= 1:
        for start, stop in parts:
            work(start, stop)
        return
    futures = [_pool(threads).submit(work, *bounds) for bounds in parts]
    try:
        for future in futures:
            future.result()
    finally:
        _finish(futures)


def even_part(size: int, smallest: int = 64) -> int:
    """A length of parts that gives each thread several, for loops whose parts take about equally long."""
    return max(smallest, -(-size // (4 * num_threads())))


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.cancel()
    wait(futures)  # no part may still write to buffers that the caller is about to reuse


def _pool(size: int) -> ThreadPoolExecutor:
    key = (os.getpid(), size)
    with _lock:
        if key not in _pools:
            _pools[key] = _start(size)
        return _pools[key]


def _start(size: int) -> ThreadPoolExecutor:
    """Start ``size`` threads on which torch does not start threads of its own.

    ``set_num_threads`` sets the number of the calling thread, and the default that a thread adopts when it
    first asks. So every new thread asks while the default is 1, and then the default is restored.
    """
    barrier = threading.Barrier(size)
    pool = ThreadPoolExecutor(size, thread_name_prefix="saecache")

    def become_single() -> None:
        barrier.wait()  # blocks each thread until all exist, so that none runs this function twice
        torch.set_num_threads(1)
        torch.get_num_threads()

    before = torch.get_num_threads()
    wait([pool.submit(become_single) for _ in range(size)])
    torch.set_num_threads(before)
    return pool
