"""The shard files of a remote cache: each is on this machine, checked, by the time it is read."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary, ref

from ...common.errors import DiskFullError, UsageError
from ..manifest import FileInfo, Manifest
from .downloads.cache import DownloadCache
from .downloads.pinned_file import PinnedFile
from .downloads.schedule import Ahead, Schedule
from .downloads.settings import ENOUGH_FILES
from .places.object_requests import OnBytes
from .transfer import StoppedError

DOWNLOADS_AT_ONCE = 8
_SHARE_HELD = 1 / 2  # of the local cache's limit, that this object may keep others from removing; more if
# that is less than ENOUGH_FILES and there is room for two more
_SHARE_HELD_WHEN_FULL = 1 / 4  # the same, while there is no room for what will be needed next
_SHARE_AHEAD = 1 / 4  # of the limit, that the epochs under way may have downloaded before it is needed
_MOST_AHEAD_BYTES = 4 << 30
_MOST_AHEAD = 32  # files: a descriptor each
_MOST_HELD = 64  # files: each takes two descriptors, the other is that of its map

logger = logging.getLogger(__name__)
_Entry = tuple[
    ref[PinnedFile], int, Callable[[], None]
]  # what a reader has, its size, how to ask for its end


class RemoteShards:
    """Hands out the files of one remote cache, and downloads ahead what an epoch will need.

    ``fetch`` writes a file of the remote cache to a path, its bytes checked, and tells of bytes on the way.
    Safe to use from many threads.
    """

    def __init__(
        self, fetch: Callable[[FileInfo, Path, OnBytes], None], manifest: Manifest, local: DownloadCache
    ) -> None:
        self._fetch = fetch
        self._unwanted: set[str] = set()  # paths whose download, if there is one, shall stop
        self._fetched: set[str] = set()  # paths that this process brought, and so compared with the manifest
        self._files = {file.path: file for file in manifest.files}
        self._local = local
        self._lock = threading.Lock()
        self._held: deque[_Entry] = deque()
        self._open: WeakValueDictionary[str, PinnedFile] = WeakValueDictionary()  # what readers have, by path
        self._schedules: list[Schedule] = []
        self._under_way: dict[str, Ahead] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def hold(self, path: str, let_go: Callable[[], None]) -> PinnedFile:
        """The file ``path`` of the cache, here and kept here until ``let_go`` is called, or longer.

        ``let_go`` is called when files that are held later need the room; it must drop the ``PinnedFile``.
        """
        self._unwanted.discard(path)
        ahead = [schedule.reached(path) for schedule in tuple(self._schedules)]  # held until it is here
        under_way = self._under_way.get(path)
        if under_way is not None:
            with suppress(CancelledError, StoppedError, DiskFullError):  # here it may go otherwise
                under_way.result()
        held = self._hold_now(self._files[path])
        held.verified = path in self._fetched
        self._open[path] = held
        del ahead, under_way
        self._let_others_go(self._share_held(held.size), (ref(held), held.size, let_go))
        for schedule in tuple(self._schedules):
            schedule.fill()
        return held

    def discard(self, path: str) -> bool:
        """The local copy is damaged: the next :meth:`hold` downloads it again. False when there is none."""
        self._fetched.discard(path)
        return self._local.discard(self._files[path].sha256)

    @contextmanager
    def ahead(self, paths: Iterable[str]) -> Iterator[None]:
        """Within it files are downloaded ahead, in the order in which they will be needed."""
        self._check_process()
        schedule = Schedule([self._files[path] for path in paths], self._share_ahead, self._start)
        with self._lock:
            self._schedules.append(schedule)
        schedule.fill()
        try:
            yield
        finally:
            with self._lock:
                self._schedules.remove(schedule)
            self._unwanted.update(schedule.cancel())

    def _share_ahead(self) -> tuple[int, int]:
        """(bytes, files) that each epoch under way may be ahead."""
        epochs = max(1, len(self._schedules))
        limit = min(int(self._local.limit_bytes * _SHARE_AHEAD), _MOST_AHEAD_BYTES)
        return limit // epochs, _MOST_AHEAD // epochs

    def _start(self, file: FileInfo, first: bool) -> Ahead:
        held = self._open.get(file.path)
        if held is not None:
            here = Ahead()
            here.set_result(held)
            return here
        with self._lock:
            if file.path in self._under_way:
                return self._under_way[file.path]
            self._unwanted.discard(file.path)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "saecache-download")
            future = self._pool.submit(self._hold_ahead, file, first)
            self._under_way[file.path] = future
        future.add_done_callback(lambda _: self._under_way.pop(file.path, None))
        return future

    def _hold_ahead(self, file: FileInfo, first: bool) -> PinnedFile | None:
        """None when there is no room that nobody holds: whoever needs it later takes it all the same."""
        hold = partial(self._local.hold_within_limit, file.sha256, file.size, partial(self._bring, file))
        held = hold()
        if held is None and first:
            self._let_others_go(int(self._local.limit_bytes * _SHARE_HELD_WHEN_FULL))
            held = hold()
        return held

    def _hold_now(self, file: FileInfo) -> PinnedFile:
        wanted = (file.sha256, file.size, partial(self._bring, file))
        try:
            held = self._local.hold_within_limit(*wanted)
            if held is None:
                self._let_others_go(int(self._local.limit_bytes * _SHARE_HELD_WHEN_FULL))
                held = self._local.hold(*wanted)
            return held
        except DiskFullError:
            logger.warning("the disk of %s is full: nothing more is downloaded ahead", self._local.folder)
            for schedule in tuple(self._schedules):
                self._unwanted.update(schedule.cancel())
            wait(tuple(self._under_way.values()))
            self._let_others_go(0)
            return self._local.hold(*wanted)

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

    def _share_held(self, size: int) -> int:
        """Bytes that may be held for readers, of files of this size."""
        limit = self._local.limit_bytes
        return max(int(limit * _SHARE_HELD), min(ENOUGH_FILES * size, limit - 2 * size))

    def _let_others_go(self, budget: int, *new: _Entry) -> None:
        """Keep what is held for readers within so many bytes, but for the newest."""
        old: list[Callable[[], None]] = []
        with self._lock:
            alive = [entry for entry in self._held if (held := entry[0]()) is not None and held.release.alive]
            self._held = deque([*alive, *new])
            total = sum(size for _, size, _ in self._held)
            while len(self._held) > 1 and (total > budget or len(self._held) > _MOST_HELD):
                _, size, drop = self._held.popleft()
                total -= size
                old.append(drop)
        for drop in old:  # takes the lock of an array, which may be waiting for ours
            drop()
