"""A folder for each process of a harvest whose processes share none, below the scratch folder of its machine.

Nothing in it outlives the run: what is kept is in the bucket.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...common.errors import UsageError
from ...common.outputs import take_lock
from ...distributed.group import Group
from ...store.disk_space import disk_explained
from ...store.durable import make_folder
from ...store.writing.journal import WORK_FOLDER

_NAME = "process."


@contextmanager
def own_folder(scratch: Path, group: Group) -> Iterator[Path]:
    """A new folder for this process, which is removed at the end of the block. All processes call this.

    What processes that were killed have left in ``scratch`` is removed too.

    Raises:
        UsageError: another run works there.
    """
    work = scratch / WORK_FOLDER
    folder = work / f"{_NAME}{group.rank}"
    with group.together(), disk_explained(scratch):
        make_folder(work)
        lock = take_lock(_lock_of(folder), folder, "choose another --scratch")
    try:
        with group.together(), disk_explained(scratch):  # by now all that live have their lock
            for left in [path for path in work.glob(f"{_NAME}*") if path.is_dir()]:
                if left == folder:
                    shutil.rmtree(left)
                else:
                    _remove_unless_used(left)
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        _lock_of(folder).unlink(missing_ok=True)
        for above in (work, scratch):
            with suppress(OSError):  # others are there still
                above.rmdir()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_unless_used(folder: Path) -> None:
    with suppress(UsageError):
        lock = take_lock(_lock_of(folder), folder, "choose another --scratch")
        shutil.rmtree(folder, ignore_errors=True)  # several processes may remove it
        lock.release()
        _lock_of(folder).unlink(missing_ok=True)
