"""What stands at a path, which may come from anybody.

``Path.exists`` and its like fail at a name that is too long, holds a NUL or cannot be encoded. Nothing can be
called so: these functions say that nothing is there.
"""

import errno
import stat
from pathlib import Path

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ENAMETOOLONG)


def exists(path: Path | str) -> bool:
    """Whether something is there; a link counts as what it points to."""
    return _mode(path) is not None


def is_folder(path: Path | str) -> bool:
    """Whether a folder is there, or a link to one."""
    return stat.S_ISDIR(_mode(path) or 0)


def is_file(path: Path | str) -> bool:
    """Whether a regular file is there, or a link to one."""
    return stat.S_ISREG(_mode(path) or 0)


def is_link(path: Path | str) -> bool:
    """Whether a link is there, whatever it points to."""
    return stat.S_ISLNK(_mode(path, follow=False) or 0)


def why_impossible(path: Path | str) -> str | None:
    """Why nothing can ever be at the path, in words; None if something may be."""
    try:
        Path(path).lstat()
    except ValueError:
        return "it holds a character that no name of a file can have"
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return (error.strerror or "it cannot be looked up").lower()
    return None


def expanded(path: Path | str) -> Path:
    """The path with ``~`` and ``~user`` replaced, as far as there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _mode(path: Path | str, *, follow: bool = True) -> int | None:
    try:
        return Path(path).stat(follow_symlinks=follow).st_mode
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise
