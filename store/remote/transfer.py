"""Many objects at once: how many, how fast, how far, and an end to all of them when one fails."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ...common.errors import UsageError

DEFAULT_CONCURRENCY = 8
OnProgress = Callable[[int], None]
"""Called with the bytes moved since the last call, by one thread at a time; negative when they move again."""


class Traffic:
    """What the threads of one transfer share.

    Args:
        concurrency: objects moved at the same time.
        max_bytes_per_second: of all of them together; None for no limit.
        on_progress: told of every byte.
    """

    def __init__(
        self,
        concurrency: int = DEFAULT_CONCURRENCY,
        max_bytes_per_second: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"--concurrency: expected at least 1, got {concurrency}")
        if max_bytes_per_second is not None and max_bytes_per_second <= 0:
            raise UsageError(f"--max-bandwidth: expected more than 0, got {max_bytes_per_second}")
        self.concurrency = concurrency
        self._rate = max_bytes_per_second
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._free_at = 0.0  # when the bytes moved so far are paid for

    def moved(self, count: int) -> None:
        """Count bytes, wait while they came too fast, and end the thread when another one failed."""
        if self._stopped.is_set():
            raise StoppedError
        pause = 0.0
        with self._lock:
            if self._on_progress:
                self._on_progress(count)
            if self._rate is not None and count > 0:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + count / self._rate
                pause = self._free_at - now
        if pause > 0 and self._stopped.wait(pause):
            raise StoppedError

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Do all tasks; the first failure stops the others and is raised."""
        pool = ThreadPoolExecutor(self.concurrency, "saecache-transfer")
        waiting = iter(tasks)
        running: set[Future[None]] = set()
        try:
            while True:
                while len(running) < self.concurrency and (task := next(waiting, None)) is not None:
                    running.add(pool.submit(task))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class StoppedError(Exception):
    """Another thread failed, or the user interrupted: this one ends too."""
