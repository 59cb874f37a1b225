"""Moving the objects of a cache: many at once, within limits, only what is missing on the other side."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from ...common.errors import UsageError
from .cache_objects import CacheObject, Root
from .places.object_requests import OnBytes
from .places.remote_folder import RemoteFolder

DEFAULT_CONCURRENCY = 8


class Traffic:
    """What the threads of one transfer share.

    Args:
        concurrency: objects moved at the same time.
        max_bytes_per_second: of all of them together; None for no limit.
        on_progress: called for every byte, by one thread at a time.
    """

    def __init__(
        self,
        concurrency: int = DEFAULT_CONCURRENCY,
        max_bytes_per_second: float | None = None,
        on_progress: OnBytes | None = None,
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

    def moved(self, count: int, *, again: bool = False) -> None:
        """Count bytes, wait while they came too fast, and end the thread when another one failed.

        ``again``: they are no progress, because they were counted before.
        """
        if self._stopped.is_set():
            raise StoppedError
        pause = 0.0
        with self._lock:
            if self._on_progress and not again:
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


@dataclass(frozen=True)
class TransferResult:
    """What a push or pull did, or with ``dry_run`` would do."""

    cache: str
    url: str
    fingerprint: str
    objects: int
    bytes: int
    moved_objects: int
    moved_bytes: int
    dry_run: bool = False


class Transfer(ABC):
    """A push or a pull. ``plan`` compares both sides, ``run`` moves what the plan found missing.

    Args:
        local: the folder on this machine.
        root: the manifest of the cache.
        objects: what is compared and moved one by one, the root apart.
        verify: read what is already there, instead of trusting sizes and recorded checksums.
    """

    counts_root: ClassVar[bool]  # whether the root is one of the objects that are counted

    def __init__(
        self,
        folder: RemoteFolder,
        local: Path,
        root: Root,
        objects: list[CacheObject],
        traffic: Traffic | None,
        verify: bool,
    ) -> None:
        self.folder = folder
        self.path = local
        self.root = root
        self.traffic = traffic or Traffic()
        self.verify = verify
        self._objects = objects
        self._missing: list[CacheObject] | None = None
        self._finished = False

    def plan(self) -> TransferResult:
        """Compare both sides; nothing is written. Raises what the class says of the other side."""
        self._finished = self._inspect()
        missing: list[CacheObject] = []

        def compare(wanted: CacheObject) -> None:
            if not self._is_there(wanted):
                missing.append(wanted)

        self.traffic.run(partial(compare, wanted) for wanted in self._objects)
        self._missing = sorted(missing, key=lambda found: (-found.size, found.key))
        return self._result(dry_run=True)

    def run(self) -> TransferResult:
        """Move what is missing, the manifest last. The same command continues one that was stopped."""
        if self._missing is None:
            self.plan()
        assert self._missing is not None
        self._move(self._missing)
        return self._result(dry_run=False)

    @abstractmethod
    def _inspect(self) -> bool:
        """Whether the cache is on the other side and finished; refuses a place that is taken."""

    @abstractmethod
    def _is_there(self, wanted: CacheObject) -> bool:
        """Whether the other side has these bytes."""

    @abstractmethod
    def _move(self, missing: list[CacheObject]) -> None:
        """Move these objects, then what is not counted, then the manifest.

        Where the cache is finished and nothing is missing, only remove what a killed command left beside it.
        """

    def _result(self, *, dry_run: bool) -> TransferResult:
        assert self._missing is not None
        root = [len(self.root.content)] if self.counts_root else []
        moved = [*(found.size for found in self._missing), *([] if self._finished else root)]
        return TransferResult(
            cache=str(self.path),
            url=self.folder.url,
            fingerprint=self.root.manifest.fingerprint,
            objects=len(self._objects) + len(root),
            bytes=sum(found.size for found in self._objects) + sum(root),
            moved_objects=len(moved),
            moved_bytes=sum(moved),
            dry_run=dry_run,
        )
