"""Running an iterator ahead of its consumer, in a thread."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")

_POLL_SECONDS = 0.1


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(source: Iterator[ItemT], depth: int = 2) -> Iterator[ItemT]:
    """The items of ``source``, up to ``depth`` of them made ahead. What ``source`` raises is raised here."""
    made: queue.Queue[ItemT | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: ItemT | _End) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in source:
                if not put(item):
                    break
        except BaseException as raised:  # noqa: BLE001 - it is raised again where the items are consumed
            error = raised
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        put(_End(error))

    thread = threading.Thread(target=work, name="saecache-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # this frame must not keep the batch alive while the next one is made
    finally:
        stop.set()
        thread.join()
