"""The read-through cache on this machine: files by their sha256, one copy however many processes read.

    <folder>/shards/<2 hex>/<sha256>      whole files whose bytes were checked; the only ones that are read
    <folder>/partial/<sha256>-<size>      downloads under way, or left by a killed process
    <folder>/locks/<3 hex>                held while a file with such a sha256 is being downloaded
    <folder>/room.lock, room              held while room is made; bytes taken, never too few

Least recently used files are removed when room is wanted. A file that is held cannot be, in any process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import filelock

from ....common.errors import DiskFullError, SaecacheError
from ....common.lookups import is_link
from ....common.regular_files import open_regular_descriptor, read_regular
from ...disk_space import is_full
from ...durable import write_all
from .pinned_file import PinnedFile, pin_file, remove_unless_pinned, rename_and_pin

Fetch = Callable[[Path], None]  # writes the whole file to a path, its bytes checked against the manifest

_SLACK = 0.05  # of the limit
_STRIPE_DIGITS = 3
_LONGEST_NUMBER = 32  # bytes of the file ``room``


class DownloadCache:
    """Files of at most ``limit_bytes`` together in ``folder``, shared by all processes that name it.

    The limit is exceeded only while files that are held at the same moment are larger than it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        for name in ("shards", "partial", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def hold(self, sha256: str, size: int, fetch: Fetch) -> PinnedFile:
        """The file with this sha256, downloaded by ``fetch`` unless it is there. Counts as a use.

        Waits for whoever is downloading it. It is needed now: files that are held do not keep it away.

        Raises:
            DiskFullError: there is no room on the disk, and nothing that may be removed.
            SaecacheError: the folder cannot be read or written.
            anything that ``fetch`` raises; then nothing of the file is kept.
        """
        held = self._hold(sha256, size, fetch, exceed=True)
        assert held is not None
        return held

    def hold_within_limit(self, sha256: str, size: int, fetch: Fetch) -> PinnedFile | None:
        """As :meth:`hold`; None when the limit has no room for it beside what all processes hold."""
        return self._hold(sha256, size, fetch, exceed=False)

    def hold_if_here(self, sha256: str, size: int) -> PinnedFile | None:
        """The file with this sha256 unless it would have to be downloaded. Counts as a use."""
        held = pin_file(self.path_of(sha256))
        if held is None:
            return None
        if held.size != size:  # a crash of the machine can leave such a file
            held.release()
            self.discard(sha256)
            return None
        with suppress(FileNotFoundError, PermissionError):  # another user's file may be read all the same
            os.utime(held.path)
        return held

    def _hold(self, sha256: str, size: int, fetch: Fetch, *, exceed: bool) -> PinnedFile | None:
        with self._explained():
            held = self.hold_if_here(sha256, size)
            while held is None:
                with self._stripe(sha256):
                    held = self.hold_if_here(sha256, size)
                    if held is None:
                        partial = self.folder / "partial" / f"{sha256}-{size}"
                        if not self._make_room(size, partial, exceed=exceed):
                            return None
                        held = self._download(partial, self.path_of(sha256), size, fetch)
            return held

    def discard(self, sha256: str) -> bool:
        """Remove a damaged file (who has it mapped keeps it); False when it is not here."""
        try:
            self.path_of(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def path_of(self, sha256: str) -> Path:
        return self.folder / "shards" / sha256[:2] / sha256

    def used_bytes(self) -> int:
        """Bytes of all files, those under way included, by looking."""
        return self._look()[0]

    def _download(self, partial: Path, path: Path, size: int, fetch: Fetch) -> PinnedFile | None:
        """The lock of the stripe is held, so nobody else writes this partial file."""
        try:
            try:
                fetch(partial)
            except OSError as error:
                if not is_full(error) or not self._remove_unused(size):
                    raise
                fetch(partial)
            path.parent.mkdir(exist_ok=True)
            return rename_and_pin(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            self._give_back(size)
            raise

    def _make_room(self, size: int, partial: Path, *, exceed: bool) -> bool:
        """Reserve ``size`` bytes for ``partial``, after removing what was not used for longest.

        False when that does not keep the limit, unless it may be exceeded.
        """
        slack = int(self.limit_bytes * _SLACK)  # looking at every file is worth more room than one needs
        with self._room_lock():
            used = self._read_used()
            if used is None or used + size > self.limit_bytes:
                used = self._remove_down_to(self.limit_bytes - size - (slack if size < slack else 0))
            reserved = exceed or used + size <= self.limit_bytes
            if reserved:
                _remove_link(partial)
                partial.touch()
                os.close(open_regular_descriptor(partial))  # to write into a FIFO would wait for ever
            self._write_used(used + (size if reserved else 0))
            return reserved

    def _give_back(self, size: int) -> None:
        with self._room_lock():
            used = self._read_used()
            if used is not None:
                self._write_used(max(0, used - size))

    def _remove_unused(self, size: int) -> bool:
        """Make the disk emptier by ``size`` bytes; False when nothing could be removed."""
        with self._room_lock():
            before = self.used_bytes()
            left = self._remove_down_to(before - size)
            self._write_used(left)
            return left < before

    def _remove_down_to(self, wanted: int) -> int:
        """Remove files, least recently used first, until at most ``wanted`` bytes are used; what still is."""
        self._remove_abandoned()
        used, files = self._look()
        for _, size, path in sorted(files):
            if used <= wanted:
                break
            if remove_unless_pinned(path):
                used -= size
        return used

    def _look(self) -> tuple[int, list[tuple[int, int, Path]]]:
        """(bytes of all files, those under way included; time of last use, size, path of each whole one)."""
        under_way = {path.name.partition("-")[0]: size for path, size in self._partial()}
        files = list(self._files())
        whole = sum(size for _, size, path in files if path.name not in under_way)  # named since then
        return whole + sum(under_way.values()), files

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, size, path) of every whole file."""
        for group in os.scandir(self.folder / "shards"):
            for entry in os.scandir(group.path) if group.is_dir() else ():
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue
                yield found.st_mtime_ns, found.st_size, Path(entry.path)

    def _partial(self) -> Iterator[tuple[Path, int]]:
        """Path and final size of every download under way or abandoned."""
        for entry in os.scandir(self.folder / "partial"):
            size = entry.name.rpartition("-")[2]  # a temporary name has none: it is counted once
            yield Path(entry.path), int(size) if size.isdecimal() else 0

    def _remove_abandoned(self) -> None:
        """Remove partial files of processes that were killed: nobody holds their locks."""
        for path, _ in self._partial():
            try:
                with self._stripe(path.name, timeout=0):
                    path.unlink(missing_ok=True)
            except filelock.Timeout:
                continue

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise SaecacheError(
                    f"the folder for downloads {self.folder} cannot be used ({_describe(error)}): mend it, "
                    "or name another one in SAECACHE_CACHE_DIR, and run the same command again"
                ) from error
            raise DiskFullError(
                f"the disk of {self.folder} is full, and no download in it can be removed: make room, or name"
                " another folder in SAECACHE_CACHE_DIR, and run the same command again"
            ) from error

    def _stripe(self, sha256: str, timeout: float = -1) -> AbstractContextManager[object]:
        lock = filelock.FileLock(self.folder / "locks" / sha256[:_STRIPE_DIGITS], thread_local=False)
        return lock.acquire(timeout=timeout)

    def _room_lock(self) -> AbstractContextManager[object]:
        return filelock.FileLock(self.folder / "room.lock", thread_local=False).acquire(poll_interval=0.01)

    def _read_used(self) -> int | None:
        try:
            text = read_regular(self.folder / "room", _LONGEST_NUMBER)
        except (FileNotFoundError, ValueError):  # ValueError: larger than any number is
            return None
        return int(text) if text.isdigit() else None

    def _write_used(self, used: int) -> None:
        """After :meth:`_read_used`, which refuses what is no file."""
        _remove_link(self.folder / "room")
        with (self.folder / "room").open("wb", buffering=0) as file:
            write_all(file, str(used).encode())


def _remove_link(path: Path) -> None:
    """Make sure that nothing is written through a link, which none of us has made."""
    if is_link(path):
        path.unlink()


def _describe(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
