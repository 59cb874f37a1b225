"""One pool of threads for compiled loops, and for matrix products that are followed by one.

A block's product and the scan of it run on one thread, back to back: the block is then still in that core's
cache, no thread waits for another between them, and torch's own pool, whose idle threads spin, stays out of
the way.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process (a fork has no threads) and size

Part = Callable[[int, int], None]


def run_parts(work: Part, size: int, part: int) -> None:
    """Call ``work(start, stop)`` for consecutive parts of ``range(size)``, of ``part`` (the last may be
    shorter).

    As many run at a time as torch has threads (``torch.set_num_threads``); on each, torch itself is
    single-threaded. ``work`` must give the same result whatever the order of the parts. The first exception
    is raised, once no part runs any more.
    """
    parts = [(start, min(start + part, size)) for start in range(0, size, part)]
    num_threads = min(torch.get_num_threads(), len(parts))
    if num_threads <= 1:
        for start, stop in parts:
            work(start, stop)
        return
    futures = [_pool(torch.get_num_threads()).submit(work, *bounds) for bounds in parts]
    try:
        for future in futures:
            future.result()
    finally:
        _finish(futures)


def even_part(size: int, smallest: int = 64) -> int:
    """A part size that gives every thread several parts, for loops whose parts cost about the same."""
    return max(smallest, -(-size // (4 * torch.get_num_threads())))


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
