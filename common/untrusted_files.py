"""Reading files that may come from anybody: regular files only, and no more bytes than they may have."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open ``path`` for reading, as ``open(path, "rb")`` does, but only if it is a regular file.

    To open a FIFO would wait for a writer for ever, and a device may have no end.

    Raises:
        OSError: it cannot be opened, or it is a folder, a FIFO, a device or a socket.
    """
    _check_regular(os.stat(path).st_mode, path)  # before it is opened: to open a device may do something
    file = open(path, "rb", opener=_open_without_waiting)
    try:
        _check_regular(os.fstat(file.fileno()).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most ``most_bytes`` bytes.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: the file is larger.
    """
    with open_regular(path) as file:
        large = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if large else file.read(most_bytes + 1)
    if large or len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes, no such file is that large")
    return content


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
