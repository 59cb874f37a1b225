"""Open a small file which may come from anybody: a config, a run's records, an SAE's cfg.

Only a regular file is opened (:mod:`..common.regular_files`). It is read up to a limit, and its JSON may
hold only what every later step can work with.
"""

import errno
import os
from collections.abc import Iterator
from io import BufferedReader
from math import isfinite
from pathlib import Path
from typing import Any

from ..common.counts import format_bytes
from ..common.errors import UsageError
from ..common.regular_files import NOT_REGULAR, open_regular
from .untrusted_json import MAX_DEPTH, MAX_METADATA_BYTES, parse_json

MAX_LINE_BYTES = 1 << 20  # of a file with one JSON object per line


def open_file(path: Path) -> BufferedReader:
    """Open the regular file ``path`` for reading, without waiting for anything.

    Raises:
        FileNotFoundError: there is none, which the caller explains.
        UsageError: it is a folder, a FIFO, a socket or a device, or it may not be read.
    """
    try:
        return open_regular(path)
    except ValueError:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise FileNotFoundError(errno.ENOENT, reason, str(path)) from None
        if reason.startswith(NOT_REGULAR):
            kind = reason.removeprefix(f"{NOT_REGULAR} but ")
            raise UsageError(
                f"{path} is {kind}, and a file is expected there: remove it, or put the file back"
            ) from None
        raise UsageError(f"cannot read {path}: {reason}") from None


def read_file(path: Path, max_bytes: int = MAX_METADATA_BYTES) -> bytes:
    """The content of a file of at most ``max_bytes``; errors as :func:`open_file`.

    Raises:
        UsageError: it is larger, or the disk fails.
    """
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > max_bytes else file.read(max_bytes + 1)  # a file may grow meanwhile
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if max(size, len(content)) > max_bytes:
        raise UsageError(
            f"{path} has more than {format_bytes(max_bytes)}, and no file of this kind is that large: "
            "give the right file"
        )
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """The content of a UTF-8 file; errors as :func:`read_file`.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return read_file(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): "
            "save it as UTF-8"
        ) from None


def read_object(path: Path, fix: str, max_bytes: int = MAX_METADATA_BYTES) -> dict[str, Any]:
    """The JSON object that a file holds; errors as :func:`read_file`.

    Args:
        fix: what the user can do about a damaged file, for the message.

    Raises:
        UsageError: the file does not hold a JSON object, or it holds what :func:`parse_object` refuses.
    """
    try:
        return parse_object(read_file(path, max_bytes))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged: {error}; {fix}") from None


def read_object_lines(
    path: Path, *, allow_nan: bool = False
) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """The lines of a JSONL file: their number from 1, their bytes, and the object, None for an empty line.

    A last line without its end was left unfinished by a killed process, and is left out. Only one line at a
    time is in memory.

    Raises:
        FileNotFoundError, UsageError: as :func:`open_file`; or a line is not a JSON object, or too long.
    """
    with open_file(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UsageError(f"{path}, line {number}: longer than {format_bytes(MAX_LINE_BYTES)}")
            if not line.endswith(b"\n"):
                return
            try:
                yield number, line, parse_object(line, allow_nan=allow_nan) if line.strip() else None
            except ValueError as error:
                raise UsageError(
                    f"{path}, line {number}: expected a JSON object, got {line[:40]!r} ({error}); remove the "
                    "line, or move the file away"
                ) from None


def parse_object(content: bytes, *, allow_nan: bool = False) -> dict[str, Any]:
    """The JSON object in ``content``.

    Args:
        allow_nan: take NaN and numbers beyond float64 too, for a reader that handles them itself.

    Raises:
        ValueError: as :func:`.untrusted_json.parse_json`; or it is not an object, is nested more than
            :data:`.untrusted_json.MAX_DEPTH` levels deep, or holds a number beyond float64 or text that is
            not Unicode.
    """
    value = parse_json(content, allow_nan=allow_nan)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, float) and not (allow_nan or isfinite(one)):
                raise ValueError("a number is beyond float64")
            elif isinstance(one, str) and not one.isascii():
                one.encode("utf-8")  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
        level = inner
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
