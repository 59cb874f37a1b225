"""Ctrl-C and SIGTERM: the first asks for a stop at the next good moment, the second stops at once."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop was asked for.

    Within the ``with`` block the first Ctrl-C or SIGTERM only sets that answer; a second one raises
    KeyboardInterrupt. Python delivers signals to the main thread: in any other thread nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    former = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
