"""A new folder that appears only when all of it is written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...common.errors import SaecacheError, UsageError
from ...common.lookups import exists, is_link
from ...common.outputs import check_folder_output, take_lock
from ...store.disk_space import check_room, disk_explained
from ...store.durable import TEMPORARY_SUFFIX, fsync_folder, make_folder
from ...store.remote import is_url

LOCK_FILE = ".lock"


def check_new(out: Path | str, needed_bytes: int) -> Path:
    """Make sure that ``out`` can be made, and return it as a path.

    Raises:
        UsageError: it is a URL, it exists already, it cannot be written, or there is too little space.
    """
    if is_url(out):
        raise UsageError(f"--out must name a folder, got the URL {out}: copy the folder there afterwards")
    path = Path(out)
    if exists(path) or is_link(path):
        raise UsageError(f"{path} exists, and nothing is overwritten: give another --out, or remove it")
    check_folder_output(path)
    check_room(path, needed_bytes, otherwise="choose another --out")
    return path


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder to fill. It becomes ``out`` if the block ends without an error, else it is
    removed.

    What a killed process left of the same folder is removed first.

    Raises:
        UsageError: another process is writing ``out``, or made it in the meantime.
        SaecacheError: it cannot be written.
    """
    temporary = out.with_name(f".{out.name}{TEMPORARY_SUFFIX}")
    try:
        with disk_explained(out):
            make_folder(out.absolute().parent)
            if is_link(temporary):  # out of the folder, in a folder of others: not what we have left
                temporary.unlink()
            temporary.mkdir(exist_ok=True)
            lock = take_lock(temporary / LOCK_FILE, out, "give another --out")
            try:
                _clear(temporary)
                yield temporary
                fsync_folder(temporary)
                if out.exists():  # rename would replace an empty folder
                    raise UsageError(f"{out} was made meanwhile by another process: give another --out")
                temporary.rename(out)
                (out / LOCK_FILE).unlink()
                fsync_folder(out.absolute().parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                lock.release()
    except OSError as error:
        raise SaecacheError(f"cannot write {out}: {error}") from error


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()
