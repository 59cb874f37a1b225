"""Writing that survives a crash: temporary name, fsync, rename, fsync of the folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace ``path`` with what ``write`` puts into the open file; the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace ``path`` with ``content``, durably and atomically."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_file(path, write)


def fsync_folder(path: Path) -> None:
    """Make names created, renamed or removed in ``path`` durable."""
    if os.name == "nt":  # folders cannot be opened there; NTFS journals names itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
