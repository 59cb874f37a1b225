"""Reading files that may come from anybody: regular files only, and no more bytes than they may have."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

NOT_REGULAR = "not a regular file"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BufferedReader:
    """Open ``path`` for reading, as ``open(path, "rb")`` does, but only if it is a regular file.

    To open a FIFO would wait for a writer for ever, and a device may have no end.

    Raises:
        OSError: it cannot be opened, or it is a folder, a FIFO, a device or a socket.
    """
    return open(path, "rb", opener=open_regular_descriptor)


def open_regular_descriptor(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """As :func:`open_regular`, but as ``os.open`` does: the caller closes the descriptor."""
    _check_regular(Path(path).stat().st_mode, path)  # before it is opened: to open a device may do something
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most ``most_bytes`` bytes.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: the file is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most_bytes else file.read(size + 1)  # which allocates what it is asked for
    if max(size, len(content)) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes, no such file is that large")
    return content


def _check_regular(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"{NOT_REGULAR} but {kind}", str(path))
