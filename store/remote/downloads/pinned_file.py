"""Files that nobody removes while somebody holds them, in whatever process."""

import os
import sys
import weakref
from pathlib import Path

from ....common.regular_files import open_regular_descriptor

if sys.platform != "win32":  # where a file that is open cannot be removed anyway
    import fcntl


class PinnedFile:
    """A file that no process removes until :meth:`release`, or until nobody has this object."""

    def __init__(self, path: Path, size: int, descriptor: int) -> None:
        self.path = path
        self.size = size
        self.verified = False  # all its bytes, by this process
        self.release = weakref.finalize(self, os.close, descriptor)


def pin_file(path: Path) -> PinnedFile | None:
    """Hold the file at ``path``; None when there is none.

    Raises:
        OSError: it cannot be opened, or it is a folder, a FIFO, a device or a socket.
    """
    try:
        descriptor = open_regular_descriptor(path)
    except FileNotFoundError:
        return None
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    found = os.fstat(descriptor)
    held = PinnedFile(path, found.st_size, descriptor)
    if found.st_nlink == 0:  # removed between opening and locking
        held.release()
        return None
    return held


def rename_and_pin(partial: Path, path: Path) -> PinnedFile | None:
    """Rename a finished file and hold it; None when it was removed in between."""
    if sys.platform == "win32":  # what is open cannot be renamed there
        partial.replace(path)
        return pin_file(path)
    held = pin_file(partial)  # before anybody finds it under its name
    partial.replace(path)
    if held is not None:
        held.path = path
    return held


def remove_unless_pinned(path: Path) -> bool:
    """Remove the file at ``path``; False when somebody holds it.

    Raises:
        OSError: as :func:`pin_file`.
    """
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            return False
        return True
    try:
        descriptor = open_regular_descriptor(path)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
