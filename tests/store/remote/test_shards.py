"""Which files of a remote cache are here at which moment: those that are needed next stay, and no more."""

import errno
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saecache.store.manifest import FileInfo
from saecache.store.remote.downloads.cache import DownloadCache
from saecache.store.remote.downloads.pinned_file import PinnedFile
from saecache.store.remote.shards import RemoteShards

from ...killing import DEADLINE_SECONDS

SIZE = 1000
NUM_FILES = 40


def content(path: str) -> bytes:
    return path.encode().ljust(SIZE, b".")


def digest(path: str) -> str:
    return hashlib.sha256(content(path)).hexdigest()


class Reader:
    """Reads files of one remote cache as an array does; keeps the newest ``kept`` of them open."""

    def __init__(self, folder: Path, limit_files: float, name: str = "a", kept: int = 100) -> None:
        self.paths = [f"{name}/{number}" for number in range(NUM_FILES)]
        self.fetched: Counter[str] = Counter()
        self.disk_bytes: float = float("inf")
        self.local = DownloadCache(folder, int(limit_files * SIZE))
        files = [FileInfo(path=path, size=SIZE, sha256=digest(path)) for path in self.paths]
        self.shards = RemoteShards(self._fetch, SimpleNamespace(files=files), self.local)  # type: ignore[arg-type]
        self._kept = kept
        self._open: dict[str, PinnedFile] = {}

    def _fetch(self, file: FileInfo, target: Path, on_bytes: Callable[[int], None]) -> None:
        self.fetched[file.path] += 1
        target.write_bytes(b"")
        if self._bytes_on_disk() + SIZE > self.disk_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(content(file.path))
        on_bytes(SIZE)

    def _bytes_on_disk(self) -> int:
        total = 0
        for found in self.local.folder.rglob("*/*/*"):
            with suppress(FileNotFoundError):  # removed by another thread in the meantime
                total += found.stat().st_size
        return total

    def read(self, path: str) -> None:
        held = self._open[path] = self.shards.hold(path, lambda: self._open.pop(path, None))
        assert held.path.read_bytes() == content(path)
        while len(self._open) > self._kept:
            del self._open[next(iter(self._open))]

    def is_here(self, path: str) -> bool:
        return self.local.path_of(digest(path)).exists()

    def used_bytes(self) -> int:
        with self.local._room_lock():  # else a file that goes and its successor are both seen
            return self.local.used_bytes()

    def wait_for(self, *paths: str) -> None:
        self.wait_until(lambda: all(map(self.is_here, paths)))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_what_was_downloaded_ahead_stays_until_it_is_used(tmp_path: Path) -> None:
    """However much else is read in the meantime; it is the least recently used of all."""
    reader = Reader(tmp_path, limit_files=8, kept=1)
    wanted, others = reader.paths[:10], reader.paths[10:]
    with reader.shards.ahead(wanted):
        reader.wait_for(*wanted[:2])
        for path in others:
            reader.read(path)
            assert reader.used_bytes() <= 8 * SIZE
        for path in wanted:
            reader.read(path)
    assert set(reader.fetched.values()) == {1}


def test_what_is_overtaken_is_let_go_when_there_is_enough_of_it(tmp_path: Path) -> None:
    """A reader that has a file open since before never asks for it."""
    reader = Reader(tmp_path, limit_files=8, kept=1)
    with reader.shards.ahead(reader.paths):
        for path in reader.paths[1::2]:
            reader.read(path)
            assert reader.used_bytes() <= 8 * SIZE
        reader.wait_for(reader.paths[-1])
        reader.wait_until(lambda: sum(map(reader.is_here, reader.paths)) == 8)  # others may be on their way
    assert set(reader.fetched.values()) == {1}


def test_downloads_ahead_wait_for_room(tmp_path: Path) -> None:
    """What others hold is not exceeded for what is needed later, only for what is needed now."""
    other, reader = Reader(tmp_path, limit_files=8, name="b"), Reader(tmp_path, limit_files=8, kept=1)
    for path in other.paths[:4]:
        other.read(path)
    more = [
        other.local.hold(file.sha256, SIZE, lambda target, file=file: target.write_bytes(content(file.path)))  # type: ignore[misc]
        for file in (other.shards._files[path] for path in other.paths[4:8])
    ]
    with reader.shards.ahead(reader.paths):
        time.sleep(0.1)
        assert not reader.fetched
        for path in reader.paths[:3]:
            reader.read(path)
            assert reader.used_bytes() <= (8 + 2) * SIZE  # the one before is let go for the next
        for held in more:
            held.release()
        reader.read(reader.paths[3])
        reader.wait_for(*reader.paths[4:6])
        assert reader.used_bytes() <= 8 * SIZE
    assert set(reader.fetched.values()) == {1}


def test_what_was_read_gives_way_to_what_will_be(tmp_path: Path) -> None:
    """A reader that has as much open as it may does not keep another from downloading ahead."""
    first, second = Reader(tmp_path, limit_files=8, name="a"), Reader(tmp_path, limit_files=8, name="b")
    with first.shards.ahead(first.paths), second.shards.ahead(second.paths):
        for paths in zip(first.paths, second.paths, strict=True):
            for reader, path in zip((first, second), paths, strict=True):
                reader.read(path)
                assert reader.used_bytes() <= (8 + 2) * SIZE
    assert set(first.fetched.values()) == set(second.fetched.values()) == {1}


@pytest.mark.parametrize("limit_files", [2, 3, 5])
def test_the_smallest_limits_are_kept(tmp_path: Path, limit_files: int) -> None:
    reader = Reader(tmp_path, limit_files=limit_files)
    with reader.shards.ahead(reader.paths):
        for path in reader.paths:
            reader.read(path)
            assert reader.used_bytes() <= (limit_files + 1) * SIZE
    assert set(reader.fetched.values()) == {1}


def test_on_a_full_disk_what_is_needed_later_gives_way(tmp_path: Path) -> None:
    reader = Reader(tmp_path, limit_files=16)
    wanted, others = reader.paths[:10], reader.paths[10:]
    with reader.shards.ahead(wanted):
        reader.wait_for(*wanted[:4])
        reader.disk_bytes = 4 * SIZE
        for path in others:
            reader.read(path)
        for path in wanted:
            reader.read(path)
    assert not list((tmp_path / "partial").iterdir())


def test_many_epochs_share_what_may_be_ahead(tmp_path: Path) -> None:
    reader = Reader(tmp_path, limit_files=16, kept=1)
    quarters = [reader.paths[start::4] for start in range(4)]
    errors: list[BaseException] = []

    def read_all(paths: list[str]) -> None:
        try:
            with reader.shards.ahead(paths):
                for path in paths:
                    reader.shards.hold(path, lambda: None)
                    time.sleep(0.002)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=read_all, args=(paths,)) for paths in quarters]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert reader.used_bytes() <= (16 + 4) * SIZE  # what each needs at once
        time.sleep(0.001)
    assert not errors
    assert reader.fetched == Counter(reader.paths)


def test_nothing_is_held_once_the_epoch_has_ended(tmp_path: Path) -> None:
    reader, other = Reader(tmp_path, limit_files=8), Reader(tmp_path, limit_files=8, name="b", kept=1)
    with reader.shards.ahead(reader.paths):
        reader.wait_for(*reader.paths[:2])
    held: list[Any] = [other.read(path) for path in other.paths]
    assert held and not any(map(reader.is_here, reader.paths))


def test_files_that_are_open_are_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second epoch of a cache that fits costs nothing; they stay, whatever their reader does."""
    reader = Reader(tmp_path, limit_files=2 * NUM_FILES)
    few = reader.paths[:10]
    for path in few:
        reader.read(path)
    with monkeypatch.context() as patch:
        patch.setattr(DownloadCache, "hold_if_here", None)
        ahead = reader.shards.ahead(few)
        ahead.__enter__()
    reader._open.clear()
    reader.local.limit_bytes = 10 * SIZE
    for path in reader.paths[10:]:
        reader.read(path)
        reader._open.clear()
    assert all(map(reader.is_here, few))
    ahead.__exit__(None, None, None)
    for path in reader.paths[10:]:
        reader.read(path)
    assert not any(map(reader.is_here, few))
