"""Room on the disk for what is to be downloaded: looked at before, explained when it runs out."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import GIB
from ..errors import DiskFullError, UsageError
from ..writing.disk import full_disk_explained

_SPARE_BYTES = 64 << 20  # left free beside the cache


def check_room(
    path: Path,
    needed_bytes: int,
    otherwise: str = "choose another folder, or train from the URL without a copy",
) -> None:
    """
    Args:
        otherwise: what to do instead.

    Raises:
        UsageError: the file system of ``path``, which need not exist yet, has too little space.
    """
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes and needed_bytes + _SPARE_BYTES > free:
        raise UsageError(
            f"not enough disk space at {existing}: {needed_bytes / GIB:.2f} GiB are to come, "
            f"{free / GIB:.2f} GiB are free; {otherwise}"
        )


@contextmanager
def disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a limit of the process into a message that says what to do."""
    try:
        with full_disk_explained(path):
            yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise DiskFullError(
            f"{path}: files may not grow that large here ({error.strerror}): raise the limit (ulimit -f) "
            "and run the same command again, it continues"
        ) from error
