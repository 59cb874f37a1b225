"""Places that a command writes to: looked at before the work, and held by one process at a time."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError
from .lookups import exists, is_file, is_folder, is_link, why_impossible

if TYPE_CHECKING:
    from filelock import BaseFileLock


def check_file_output(path: Path) -> None:
    """Make sure that the file ``path`` can be written, without writing it.

    Raises:
        UsageError: a folder, or a FIFO or a device, has that name, a file stands where a folder above it
            should be, or nothing may be written there.
    """
    if is_folder(path):
        raise UsageError(f"{path} is a folder, and a file is to be written: give the name of a file in it")
    if exists(path) and not is_file(path):
        raise UsageError(f"{path} is a FIFO, a socket or a device, and a file is to be written: remove it")
    _check_writable(path, _folder_above(path, path.absolute().parent))


def check_folder_output(path: Path) -> None:
    """Make sure that the folder ``path`` is there and can be written into, or can be made.

    Raises:
        UsageError: it is a file, a file stands where a folder above it should be, or nothing may be written
            there.
    """
    _check_writable(path, check_no_file(path))


def check_no_file(path: Path) -> Path:
    """Make sure that ``path`` is a folder or can become one; the nearest folder that exists.

    Raises:
        UsageError: it is a file, or a file stands where a folder above it should be.
    """
    if exists(path) and not is_folder(path):
        raise UsageError(f"{path} is a file; --out must name a folder")
    if is_link(path) and not exists(path):
        raise UsageError(f"{path} is a link to nothing, and a folder is expected there: remove it")
    return _folder_above(path, path.absolute())


def _folder_above(path: Path, folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists."""
    missing = [path.name]
    while not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    if not is_folder(folder):
        what = "a file" if exists(folder) else "a link to nothing"
        raise UsageError(f"cannot write {path}: {folder} is {what}, not a folder; choose another place")
    for place in (path, *(folder / name for name in missing)):
        if reason := why_impossible(place):
            raise UsageError(f"cannot write {str(path)!r}: {reason}; choose another name")
    return folder


def _check_writable(path: Path, folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: nothing can be written into {folder} ({error.strerror}); choose another "
            "place, or change its permissions"
        ) from None


def take_lock(path: Path, output: Path, otherwise: str) -> "BaseFileLock":
    """Take the lock file ``path`` at once, for whoever writes ``output``; release it when the work is done.

    Args:
        otherwise: what to do instead of waiting, as ``give another --out``.

    Raises:
        UsageError: another process holds it, or it is a folder or a link, or may not be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{output} is being written by another process: wait for it, or {otherwise}"
        ) from None
    except OSError as error:
        if not os.path.lexists(path):  # it could not be made: the disk may be full
            raise
        raise UsageError(
            f"cannot lock {output}: {path} cannot be opened as a file ({error.strerror}); remove it, or "
            f"{otherwise}"
        ) from None
    return lock
