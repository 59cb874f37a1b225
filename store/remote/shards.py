"""The shard files of a remote cache: each is on this machine, checked, by the time it is read."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from weakref import ref

from ..errors import UsageError
from ..manifest import FileInfo, Manifest
from .held import Held
from .local_cache import LocalCache
from .parts import OnBytes
from .traffic import StoppedError

DOWNLOADS_AT_ONCE = 8
_SHARE_HELD = 1 / 2  # of the local cache's limit, that this process may keep others from removing
_SHARE_AHEAD = 1 / 4  # of the limit, that one epoch may have downloaded before it is needed
_MOST_AHEAD_BYTES = 4 << 30
_MOST_HELD = 64  # files: each takes two descriptors, the other is that of its map


class RemoteShards:
    """Hands out the files of one remote cache, and downloads ahead what an epoch will need.

    ``fetch`` writes a file of the remote cache to a path, its bytes checked, and tells of bytes on the way.
    Safe to use from many threads.
    """

    def __init__(
        self, fetch: Callable[[FileInfo, Path, OnBytes], None], manifest: Manifest, local: LocalCache
    ) -> None:
        self._fetch = fetch
        self._unwanted: set[str] = set()  # paths whose download, if there is one, shall stop
        self._fetched: set[str] = set()  # paths that this process brought, and so compared with the manifest
        self._files = {file.path: file for file in manifest.files}
        self._local = local
        self._lock = threading.Lock()
        self._held: deque[tuple[ref[Held], int, Callable[[], None]]] = deque()
        self._schedules: list[_Schedule] = []
        self._under_way: dict[str, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def hold(self, path: str, let_go: Callable[[], None]) -> Held:
        """The file ``path`` of the cache, here and kept here until ``let_go`` is called, or longer.

        ``let_go`` is called when files that are held later need the room; it must drop the ``Held``.
        """
        self._unwanted.discard(path)
        for schedule in tuple(self._schedules):
            schedule.reached(path)
        under_way = self._under_way.get(path)
        if under_way is not None:
            with suppress(CancelledError, StoppedError):  # another reader has ended; this one still wants it
                under_way.result()
        file = self._files[path]
        held = self._local.hold(file.sha256, file.size, partial(self._bring, file))
        held.verified = path in self._fetched
        self._let_others_go(held, let_go)
        return held

    def discard(self, path: str) -> bool:
        """The local copy is damaged: the next :meth:`hold` downloads it again. False when there is none."""
        self._fetched.discard(path)
        return self._local.discard(self._files[path].sha256)

    @contextmanager
    def ahead(self, paths: Iterable[str]) -> Iterator[None]:
        """Within it files are downloaded ahead, in the order in which they will be needed."""
        self._check_process()
        limit = min(int(self._local.limit_bytes * _SHARE_AHEAD), _MOST_AHEAD_BYTES)
        schedule = _Schedule([self._files[path] for path in paths], limit, self._start)
        with self._lock:
            self._schedules.append(schedule)
        schedule.fill()
        try:
            yield
        finally:
            with self._lock:
                self._schedules.remove(schedule)
            self._unwanted.update(schedule.cancel())

    def _start(self, file: FileInfo) -> Future[None]:
        with self._lock:
            if file.path in self._under_way:
                return self._under_way[file.path]
            self._unwanted.discard(file.path)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "saecache-download")
            future = self._pool.submit(self._local.ensure, file.sha256, file.size, partial(self._bring, file))
            self._under_way[file.path] = future
        future.add_done_callback(lambda _: self._under_way.pop(file.path, None))
        return future

    def _check_process(self) -> None:
        """Threads and connections do not survive a fork: to use them would wait forever."""
        if os.getpid() != self._process:
            raise UsageError(
                "a cache that was opened by its URL cannot be read in a forked process: start workers with "
                "multiprocessing's 'spawn' or 'forkserver' (for a DataLoader multiprocessing_context='spawn')"
            )

    def _bring(self, file: FileInfo, target: Path) -> None:
        self._check_process()

        def moved(_count: int) -> None:
            if file.path in self._unwanted:
                raise StoppedError

        self._fetch(file, target, moved)
        self._fetched.add(file.path)

    def _let_others_go(self, held: Held, let_go: Callable[[], None]) -> None:
        """Keep what this process holds within bounds, so that room can be made for what comes."""
        budget = int(self._local.limit_bytes * _SHARE_HELD)
        old: list[Callable[[], None]] = []
        with self._lock:
            alive = [
                entry for entry in self._held if (other := entry[0]()) is not None and other.release.alive
            ]
            self._held = deque([*alive, (ref(held), held.size, let_go)])
            total = sum(size for _, size, _ in self._held)
            while len(self._held) > 1 and (total > budget or len(self._held) > _MOST_HELD):
                _, size, drop = self._held.popleft()
                total -= size
                old.append(drop)
        for drop in old:  # takes the lock of an array, which may be waiting for ours
            drop()


class _Schedule:
    """What one epoch needs, in order: at most ``limit_bytes`` of it are downloaded before they are needed."""

    def __init__(
        self, files: list[FileInfo], limit_bytes: int, start: Callable[[FileInfo], Future[None]]
    ) -> None:
        self._files = files
        self._places = {file.path: place for place, file in enumerate(files)}
        self._limit_bytes = limit_bytes
        self._start = start
        self._lock = threading.Lock()
        self._begun: deque[tuple[int, Future[None]]] = deque()  # (place, download) from the next needed on
        self._needed = self._next = 0  # places of the next that is needed, and of the next to begin
        self._closed = False

    def fill(self) -> None:
        """Begin downloads up to the limit; one always."""
        with self._lock:
            ahead = sum(self._files[place].size for place, _ in self._begun)
            while not self._closed and self._next < len(self._files):
                file = self._files[self._next]
                if self._begun and ahead + file.size > self._limit_bytes:
                    return
                self._begun.append((self._next, self._start(file)))
                self._next += 1
                ahead += file.size

    def reached(self, path: str) -> None:
        """``path`` is needed now, and so all before it were."""
        place = self._places.get(path, -1)
        with self._lock:
            if place < self._needed:
                return
            self._needed = place + 1
            self._next = max(self._next, self._needed)
            while self._begun and self._begun[0][0] < self._needed:
                self._begun.popleft()
        self.fill()

    def cancel(self) -> list[str]:
        """Downloads that did not begin are not made; the paths of those that did, and nobody waits for."""
        with self._lock:
            self._closed = True
            return [self._files[place].path for place, future in self._begun if not future.cancel()]
