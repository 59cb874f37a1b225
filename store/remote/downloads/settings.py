"""Where downloads are kept on this machine, and how much room they may take."""

import logging
import os
import shutil
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from ....common.errors import UsageError
from ...config import GIB
from .cache import DownloadCache

FOLDER_VARIABLE = "SAECACHE_CACHE_DIR"
BYTES_VARIABLE = "SAECACHE_CACHE_BYTES"
ENOUGH_FILES = 16  # measured: from so many on, an epoch in any order needs each file once

logger = logging.getLogger(__name__)


def open_download_cache() -> DownloadCache:
    """The local cache of this machine's downloads.

    It is in SAECACHE_CACHE_DIR, else in ``saecache`` in the user's cache folder. Its limit is
    SAECACHE_CACHE_BYTES (as ``200GB`` or ``64GiB``), else half of the room that the disk has for it.

    Raises:
        UsageError: the limit is not a size, or the folder cannot be written.
    """
    folder, limit = default_folder(), _limit_of_environment()
    try:
        local = DownloadCache(folder, 0)
    except OSError as error:
        raise UsageError(
            f"the folder for downloads {folder} cannot be made ({error.strerror}): set {FOLDER_VARIABLE}"
        ) from None
    local.limit_bytes = (shutil.disk_usage(folder).free + local.used_bytes()) // 2 if limit is None else limit
    return local


def default_folder() -> Path:
    """SAECACHE_CACHE_DIR, else ``saecache`` below XDG_CACHE_HOME or ``~/.cache``."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saecache"


def check_limit(local: DownloadCache, largest_bytes: int, where: str) -> None:
    """Refuse a limit that cannot hold two files of ``largest_bytes``: the one in use and the next.

    Warns of one that holds fewer than an epoch uses at about the same time.

    Raises:
        UsageError: with the least that would do.
    """
    if local.limit_bytes < 2 * largest_bytes:
        raise UsageError(
            f"the local cache of downloads in {local.folder} may take {local.limit_bytes / GIB:.2f} GiB, but "
            f"{where} has files of {largest_bytes / GIB:.2f} GiB and two are needed at once: set "
            f"{BYTES_VARIABLE} to at least {2 * largest_bytes}, better {ENOUGH_FILES * largest_bytes}, or "
            f"{FOLDER_VARIABLE} to a larger disk"
        )
    if local.limit_bytes < ENOUGH_FILES * largest_bytes:
        logger.warning(
            "the local cache of downloads (%.2f GiB) holds fewer than %d files of %s: some will be "
            "downloaded several times in an epoch; set %s to at least %d",
            local.limit_bytes / GIB,
            ENOUGH_FILES,
            where,
            BYTES_VARIABLE,
            ENOUGH_FILES * largest_bytes,
        )


def _limit_of_environment() -> int | None:
    text = os.environ.get(BYTES_VARIABLE)
    if not text:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text.replace("_", "")))
    except ValidationError:
        raise UsageError(f"{BYTES_VARIABLE}={text!r}: expected a size such as 200GB or 64GiB") from None
