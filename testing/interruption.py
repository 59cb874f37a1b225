"""Stop a function at a given change of the file system, as ``kill -9`` would: nothing changes after it."""

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


class InterruptedAtError(BaseException):
    """The change at which the function was to stop, or one after it. No ``except Exception`` catches it."""


@dataclass
class _Watch:
    folder: str
    stop_at: int | None
    changes: int = 0


_watch: _Watch | None = None


def count_changes(folder: Path, work: Callable[[], object], *, stop_at: int | None = None) -> int | None:
    """Do ``work`` and count what it changes in ``folder``: files opened for writing, renamed, removed, made.

    Args:
        stop_at: the number of the change that must not happen, nor any after it, in any thread.

    Returns:
        The number of changes, or None if the work was stopped.
    """
    global _watch
    assert _watch is None, "one at a time"
    _install()
    watch = _watch = _Watch(os.path.realpath(folder), stop_at)
    try:
        work()
    except BaseException as error:
        if not _is_stop(error):
            raise
        return None
    finally:
        _watch = None
        gc.collect()  # what a killed process would have given back: locks, open files
    return watch.changes


def _is_stop(error: BaseException | None) -> bool:
    """Whether the stop is the cause of ``error``."""
    while error is not None and not isinstance(error, InterruptedAtError):
        error = error.__cause__ or error.__context__
    return error is not None


@cache
def _install() -> None:
    """Once: a hook cannot be removed again. It does nothing while nobody watches."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (watch := _watch) is None or not _is_change(event, arguments):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.path.realpath(os.fsdecode(path)).startswith(watch.folder):
            return
        watch.changes += 1
        if watch.stop_at is not None and watch.changes >= watch.stop_at:
            raise InterruptedAtError(f"before change {watch.stop_at} of {watch.folder}")

    sys.addaudithook(hook)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in _CHANGES
    _path, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
