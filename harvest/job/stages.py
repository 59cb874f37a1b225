"""Three stages at once: one thread reads text ahead, this one runs the model, another writes rows."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
_END: Any = object()


def run_overlapped(
    produce: Iterator[S],
    hand_out: Callable[[Iterator[S]], Iterator[T]],
    transform: Callable[[T], U],
    consume: Callable[[U], None],
    *,
    depth: int = 2,
) -> None:
    """``consume(transform(item))`` for every item of ``hand_out(produce)``, in order.

    ``hand_out`` runs in this thread, as ``transform`` does: it may end early, and wait for other processes.
    At most ``depth`` items wait before and after ``transform``. However it ends (an exception of any stage
    is raised here), everything that was transformed has been consumed, up to a failure of ``consume``.
    """
    failed = False

    def consume_in_order(item: U) -> None:
        nonlocal failed
        if failed:  # an earlier item is missing, so this one must not go in
            return
        try:
            consume(item)
        except BaseException:
            failed = True
            raise

    def read_ahead() -> Iterator[S]:
        ahead = deque(reader.submit(next, produce, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(reader.submit(next, produce, _END))
            yield item

    reader = ThreadPoolExecutor(1, thread_name_prefix="harvest-read")
    writer = ThreadPoolExecutor(1, thread_name_prefix="harvest-write")
    try:
        pending: deque[Future[None]] = deque()
        for item in hand_out(read_ahead()):
            pending.append(writer.submit(consume_in_order, transform(item)))
            while pending and (len(pending) > depth or pending[0].done()):
                pending.popleft().result()
        for future in pending:
            future.result()
    finally:
        reader.shutdown(wait=False, cancel_futures=True)
        writer.shutdown(wait=True)
