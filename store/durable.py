"""Writing that survives a crash: temporary name, fsync, rename, fsync of the folder."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace ``path`` with what ``write`` puts into the open file; the file is whole or absent."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb", buffering=0) as file:
            write(file)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk its bytes are wanted back
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace ``path`` with ``content``, durably and atomically."""
    write_file(path, lambda file: write_all(file, content))


def write_all(file: BinaryIO, block: bytes | memoryview) -> None:
    """Write the whole of ``block``: an unbuffered file may take only a part of it at once."""
    view = memoryview(block).cast("B")
    while len(view):
        view = view[file.write(view) :]


def fsync_file(path: Path) -> None:
    """Make the content of ``path`` durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class EarlySync:
    """Keeps the disk busy while a file is being written: its final fsync then finds little left to do."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "saecache-sync")
        self._under_way: Future[None] | None = None

    def hint(self, path: Path) -> None:
        """Start syncing what ``path`` has so far, unless the last sync is still under way."""
        if self._under_way is None or self._under_way.done():
            self.wait()
            self._under_way = self._thread.submit(fsync_file, path)

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self) -> None:
        self._thread.shutdown()


def make_folder(path: Path) -> None:
    """Create a folder and those above it, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make names created, renamed or removed in ``path`` durable."""
    if os.name == "nt":  # folders cannot be opened there; NTFS journals names itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
