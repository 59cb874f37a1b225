"""Writing that survives a crash: temporary name, fsync, rename, fsync of the folder."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path``, open for writing; it is synced and becomes ``path`` when the block ends.

    After an error in the block the file is removed.
    """
    make_folder(path.parent)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        temporary.unlink(missing_ok=True)  # which may be a link out of the folder, in a folder of others
        with temporary.open("wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # which frees its bytes on a full disk
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace ``path`` with ``content``, durably and atomically."""
    with replacing(path) as file:
        write_all(file, content)


def write_all(file: BinaryIO, block: bytes | memoryview) -> None:
    """Write the whole of ``block``: an unbuffered file may take only a part of it at once."""
    view = memoryview(block).cast("B")
    while len(view):
        view = view[file.write(view) :]


def fsync_file(path: Path) -> None:
    """Make the content of ``path`` durable."""
    _fsync(path, os.O_RDWR)


def append_early(file: BinaryIO, block: bytes | memoryview) -> None:
    """Write the whole of ``block``, and have the system begin to put it on the disk.

    The final fsync then finds little left to do. Syncing now and then instead, in a thread, was slower: each
    time costs a transaction of the file system.
    """
    start = file.tell()
    write_all(file, block)
    if hasattr(os, "posix_fadvise"):  # starts to write dirty pages, and drops only clean ones
        os.posix_fadvise(file.fileno(), start, file.tell() - start, os.POSIX_FADV_DONTNEED)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, durably."""
    make_folders([path])


def make_folders(paths: Iterable[Path]) -> None:
    """As :func:`make_folder`; a folder in which several are created is synced once."""
    created: list[Path] = []

    def make(path: Path) -> None:
        if not path.is_dir():
            make(path.parent)
            path.mkdir(exist_ok=True)
            created.append(path)

    for path in paths:
        make(path)
    for parent in dict.fromkeys(path.parent for path in created):
        fsync_folder(parent)


def fsync_folder(path: Path) -> None:
    """Make names created, renamed or removed in ``path`` durable."""
    if os.name == "nt":  # folders cannot be opened there; NTFS journals names itself
        return
    _fsync(path, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
