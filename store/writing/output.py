"""The folder a cache is written into: what it holds already, its lock, and its end."""

import os
import shutil
import stat
from pathlib import Path
from typing import Literal

import filelock

from ...common.errors import CorruptCacheError, UsageError
from ...common.lookups import exists, is_file, is_folder
from ...common.outputs import check_folder_output, take_lock
from ...common.regular_files import read_regular
from ..durable import fsync_folder, make_folder, write_bytes
from ..layout import TOP_FOLDERS
from ..manifest import MANIFEST_ATTRIBUTE, MAX_MANIFEST_BYTES
from ..untrusted_json import parse_json
from .journal import WORK_FOLDER, journal_path

_UNCOMMITTED = f"{WORK_FOLDER}/uncommitted"

OutputState = Literal["absent", "empty", "incomplete", "complete", "foreign"]


def inspect_output(path: Path | str) -> OutputState:
    """What the folder ``path`` holds.

    ``incomplete`` is a cache whose writing stopped: the same command continues it. A cache is ``complete``
    when its manifest is there and its journal is gone. ``foreign`` is anything that is not ours.
    """
    path = Path(path)
    if not exists(path):
        return "absent"
    if not is_folder(path):
        return "foreign"
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return "empty"
    if journal_path(path).is_file() or (names == {WORK_FOLDER} and (path / WORK_FOLDER).is_dir()):
        return "incomplete"
    root = path / "zarr.json"
    if root.is_file():
        try:
            attributes = parse_json(read_regular(root, MAX_MANIFEST_BYTES)).get("attributes")
        except (OSError, ValueError, AttributeError):
            return "foreign"
        if isinstance(attributes, dict) and MANIFEST_ATTRIBUTE in attributes:
            return "complete"
    return "foreign"


def claim_output(path: Path) -> filelock.BaseFileLock:
    """Make the folder ready for writing and take its lock.

    Raises:
        UsageError: it holds a finished cache, something else or a link, or another process writes there.
    """
    state = inspect_output(path)
    for parent in path.absolute().parents:
        if is_file(parent / "zarr.json") and inspect_output(parent) == "complete":
            raise UsageError(f"{path} is inside the cache {parent}: choose a folder outside it")
    if state == "complete":
        raise UsageError(f"{path} already holds a finished cache: open it, or choose another folder")
    if state == "foreign":
        raise UsageError(f"{path} holds something else than a cache: choose a new or empty folder")
    _check_only_files(path)
    check_folder_output(path)
    work = path / WORK_FOLDER
    make_folder(work)
    lock = take_lock(work / "lock", path, "choose another folder")
    if (path / "zarr.json").is_file() and not journal_path(path).is_file():
        remove_work(path, lock)  # another process finished it between the look and the lock
        raise UsageError(f"{path} already holds a finished cache: open it, or choose another folder")
    return lock


def _check_only_files(path: Path) -> None:
    """Refuse links and FIFOs in an unfinished cache, which may come from anybody."""
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                mode = (Path(folder) / name).lstat().st_mode
            except FileNotFoundError:  # of another process, which writes here: the lock will say so
                continue
            if stat.S_ISLNK(mode):
                raise UsageError(
                    f"{Path(folder) / name} is a link: a cache is not written through links; remove it, or "
                    "choose another folder"
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UsageError(
                    f"{Path(folder) / name} is not a file: a cache has files and folders only; remove it, or "
                    "choose another folder"
                )


def remove_work(path: Path, lock: filelock.BaseFileLock) -> None:
    """Remove what only writing needs and let go of the lock.

    The journal goes last: while it is there the folder counts as unfinished, and the same command cleans up.
    """
    work = path / WORK_FOLDER
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry not in (journal_path(path), work / "lock"):
            entry.unlink()
    lock.release()
    (work / "lock").unlink(missing_ok=True)
    journal_path(path).unlink(missing_ok=True)
    work.rmdir()
    fsync_folder(path)


def discard_work(path: Path, lock: filelock.BaseFileLock, *, remove_folder: bool) -> None:
    """Undo :func:`claim_output` where nothing worth keeping was written."""
    remove_work(path, lock)
    if remove_folder and not any(path.iterdir()):
        path.rmdir()


def discard_results(path: Path) -> None:
    """Remove what a former finalize wrote, because more rows are coming; its records go first."""
    for folder in (f"{WORK_FOLDER}/done", *TOP_FOLDERS):
        if (path / folder).is_dir():
            shutil.rmtree(path / folder)


def mark_uncommitted(path: Path) -> None:
    """Note, durably, that the results of the coming finalize hold rows that the journal does not have."""
    write_bytes(path / _UNCOMMITTED, b"")


def unmark_uncommitted(path: Path) -> None:
    """The journal has them now."""
    (path / _UNCOMMITTED).unlink(missing_ok=True)


def discard_uncommitted_results(path: Path) -> None:
    """Remove what a killed finalize wrote of rows that were lost with it.

    Raises:
        CorruptCacheError: the mark that says so is no file.
    """
    mark = path / _UNCOMMITTED
    if mark.is_dir():
        raise CorruptCacheError(f"{mark} is not a file: remove it, to start again")
    if mark.exists():
        discard_results(path)
        unmark_uncommitted(path)
