"""One pool of threads for compiled loops, and for matrix products that are followed by one.

A block's product and the scan of it run on one thread, back to back: the block is then still in that core's
cache, no thread waits for another between them, and torch's own pool, whose idle threads spin, stays out of
the way.
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

_threads: ContextVar[int | None] = ContextVar("threads", default=None)  # where torch itself has only one

Part = Callable[[int, int], None]


def num_threads() -> int:
    """How many parts run at a time: torch's threads, or those it had before :func:`torch_on_one_thread`."""
    return _threads.get() or torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Inside, torch's operations stay on the calling thread, and only :func:`run_parts` uses the others.

    After each operation the threads of torch's pool spin for some milliseconds, waiting for the next one.
    They take that time from the parts that run in between: a seventh of a step with dead latents.
    """
    threads = torch.get_num_threads()
    if threads == 1:  # a thread of a pool, or within another such block
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
    """Call ``work(start, stop)`` for consecutive parts of ``range(size)``, of ``part`` (the last may be
    shorter).

    As many run at a time as :func:`num_threads` says; on each, torch itself is single-threaded. ``work`` must
    give the same result whatever the order of the parts. The first exception is raised, once no part runs any
    more.
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
    """A part size that gives every thread several parts, for loops whose parts cost about the same."""
    return max(smallest, -(-size // (4 * num_threads())))


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.cancel()
    wait(futures)  # nobody may still write into buffers that the caller is about to reuse


def _pool(size: int) -> ThreadPoolExecutor:
    key = (os.getpid(), size)
    with _lock:
        if key not in _pools:
            _pools[key] = _start(size)
        return _pools[key]


def _start(size: int) -> ThreadPoolExecutor:
    """``size`` threads on which torch does not start threads of its own.

    ``set_num_threads`` acts on the calling thread and on the number that threads take over when they first
    ask, so every new thread asks while that number is 1; then the number is put back.
    """
    barrier = threading.Barrier(size)
    pool = ThreadPoolExecutor(size, thread_name_prefix="saecache")

    def become_single() -> None:
        barrier.wait()  # holds each thread until all exist: one thread cannot serve two of the calls
        torch.set_num_threads(1)
        torch.get_num_threads()

    before = torch.get_num_threads()
    wait([pool.submit(become_single) for _ in range(size)])
    torch.set_num_threads(before)
    return pool
