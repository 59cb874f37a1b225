"""Whether all processes of a harvest see one folder, which they must; found out before anything is loaded."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from ..common.errors import UsageError
from ..distributed.group import Group
from ..store.disk_space import disk_explained
from ..store.writing.journal import WORK_FOLDER

_PATIENCE_SECONDS = 5.0  # network file systems show a new file late


def check_all_see(path: Path, group: Group) -> None:
    """Refuse a folder that is another one for some process, as on the own disk of each of several machines.

    Each shard of a cache has rows that all processes have made, and whoever writes it reads the spills of
    all. A folder of the same name, and even one with an older part of the same harvest, is not enough: the
    first process leaves a mark there that no other folder has.

    Raises:
        UsageError: some process does not find it.
    """
    if group.size == 1:
        return
    with _marked(path, group) as (mark, machine), group.together():
        until = monotonic() + _PATIENCE_SECONDS
        while not (path / WORK_FOLDER / mark).is_file():
            if monotonic() > until:
                raise UsageError(
                    f"process {group.rank}, on {socket.gethostname()}, does not see what process 0, on "
                    f"{machine}, has written into {path.absolute()}: expected a folder on a disk that all "
                    "machines share, because each shard is made of rows of all processes. Name such a folder "
                    "(--out, or --scratch for a harvest into a bucket), start processes on one machine only, "
                    "or harvest parts of the text apart and join them with 'saecache cache merge'"
                )
            sleep(0.05)


@contextmanager
def _marked(path: Path, group: Group) -> Iterator[tuple[str, str]]:
    """The name of a mark that the first process makes in ``path``, and its machine; the mark is gone then."""
    mark, machine = group.gather_values([f"seen-by-all-{secrets.token_hex(8)}", socket.gethostname()])[0]
    work, created = path / WORK_FOLDER, []
    try:
        with group.together():
            if group.is_first:
                with disk_explained(path):
                    created = [place for place in (work, *work.parents) if not place.exists()]
                    work.mkdir(parents=True, exist_ok=True)
                    (work / mark).touch()
        yield mark, machine
    finally:
        with suppress(OSError):
            if group.is_first:
                (work / mark).unlink(missing_ok=True)
                for place in created:
                    place.rmdir()
