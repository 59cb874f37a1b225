"""Free space on a disk: checked before the work, and explained when it runs out."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.counts import format_bytes
from ..common.errors import DiskFullError, UsageError

_SPARE_BYTES = 64 << 20  # that must stay free


def free_space(path: Path | str) -> tuple[Path, int]:
    """The nearest folder of ``path`` that exists, and the free bytes of its file system."""
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return existing, shutil.disk_usage(existing).free


def check_room(
    path: Path | str, needed_bytes: int, *, otherwise: str, needed: str = "{} are to come"
) -> None:
    """Refuse work for which the disk has no room.

    Args:
        needed: the message's words for ``needed_bytes``, with ``{}`` where their number stands.
        otherwise: what the user can do instead, for the message.

    Raises:
        UsageError: the file system of ``path``, which need not exist yet, has too little space.
    """
    existing, free = free_space(path)
    if needed_bytes > 0 and needed_bytes + _SPARE_BYTES > free:
        raise UsageError(
            f"not enough disk space at {existing}: {needed.format(format_bytes(needed_bytes))}, "
            f"{format_bytes(free)} are free; {otherwise}"
        )


def is_full(error: OSError) -> bool:
    """Whether the disk, or the quota on it, is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a limit of the process into a message that says what to do.

    Raises:
        DiskFullError: no space left, or files may not grow that large.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            what, remedy = f"the disk ran full while writing {path}", "make room"
        elif error.errno == errno.EFBIG:
            what, remedy = f"{path}: files may not grow that large here", "raise the limit (ulimit -f)"
        else:
            raise
        raise DiskFullError(
            f"{what} ({error.strerror}); what was committed is safe: {remedy} and run the same command "
            "again, it continues there"
        ) from error
