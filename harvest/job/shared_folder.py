"""Whether all processes of a harvest see one folder; found out before anything is loaded."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from ...common.errors import UsageError
from ...distributed.group import Group
from ...store.disk_space import disk_explained
from ...store.writing.journal import WORK_FOLDER
from ..plan import HarvestPlan
from .destination import Destination

_PATIENCE_SECONDS = 5.0  # network file systems show a new file late


def share_no_folder(plan: HarvestPlan, destination: Destination, begun_so: bool, group: Group) -> bool:
    """Whether each process works in a folder of its own, because some do not see that of the first one.

    ``begun_so``, of the first process, says that a former run did: its rows are in the bucket.

    Raises:
        UsageError: a harvest into a folder, or one that was begun in a folder that all saw.
    """
    if group.gather_values(begun_so)[0]:
        return True
    if destination.delivery is None:
        check_all_see(plan.path, group)
        return False
    if all_see(plan.path, group):
        return False
    with group.together():
        if group.is_first and plan.existing is not None and plan.existing.progress:
            raise UsageError(
                f"{plan.path.absolute()} on {socket.gethostname()} has rows of this harvest, which was "
                "begun by processes that all saw this folder, and now some do not: go on with processes that "
                "do, or remove it to harvest those rows again"
            )
    return True


def all_see(path: Path, group: Group) -> bool:
    """Whether ``path`` is one folder for all, and not one on the own disk of each of several machines."""
    return all(group.gather_values(_sees(path, group)))


def check_all_see(path: Path, group: Group) -> None:
    """Refuse a folder that is another one for some process.

    Each shard of a cache has rows that all processes have made, and whoever writes it reads the spills of
    all.

    Raises:
        UsageError: this process does not see the folder of the first one.
    """
    sees = _sees(path, group)
    machine = group.gather_values(socket.gethostname())[0]
    with group.together():
        if not sees:
            raise UsageError(
                f"process {group.rank}, on {socket.gethostname()}, does not see what process 0, on "
                f"{machine}, has written into {path.absolute()}: expected a folder on a disk that all "
                "machines share, because each shard is made of rows of all processes. Name such a folder "
                "(--out), harvest into a bucket (--out s3://...), for which each machine can have scratch of "
                "its own, or start processes on one machine only"
            )


def _sees(path: Path, group: Group) -> bool:
    """Whether this process sees the folder ``path`` of the first one.

    A folder of the same name, and even one with an older part of the same harvest, is not enough: the first
    process leaves a mark there that no other folder has.
    """
    if group.size == 1:
        return True
    with _marked(path, group) as mark:
        until = monotonic() + _PATIENCE_SECONDS
        while not (found := (path / WORK_FOLDER / mark).is_file()) and monotonic() < until:
            sleep(0.05)
        group.barrier()  # the mark stays until everybody has looked
        return found


@contextmanager
def _marked(path: Path, group: Group) -> Iterator[str]:
    """The name of a mark that the first process makes in ``path``; the mark is gone then."""
    mark = group.gather_values(f"seen-by-all-{secrets.token_hex(8)}")[0]
    work, created = path / WORK_FOLDER, []
    try:
        with group.together():
            if group.is_first:
                with disk_explained(path):
                    created = [place for place in (work, *work.parents) if not place.exists()]
                    work.mkdir(parents=True, exist_ok=True)
                    (work / mark).touch()
        yield mark
    finally:
        with suppress(OSError):
            if group.is_first:
                (work / mark).unlink(missing_ok=True)
                for place in created:
                    place.rmdir()
