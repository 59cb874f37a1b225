"""Safe reading of what may come from anybody: JSON within limits, and files that are no links."""

import json
import math
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..common.errors import CorruptCacheError, UsageError
from ..common.printable import printable
from ..common.regular_files import read_regular

MAX_METADATA_BYTES = 16 << 20  # of one array or group, or of the provenance
MAX_DEPTH = 64
_LONGEST_PLACE = 200  # characters of the name of a field

# Python needs 64 bytes and more for a list or mapping of two characters, and 60 for a string of one: a file
# must not be made of them. What we write has more than 14 bytes for each value, also without its spaces.
_FREE_CONTAINERS = 1 << 12
_BYTES_PER_CONTAINER = 16
_FREE_VALUES = 1 << 16
_BYTES_PER_VALUE = 12


def parse_json(content: bytes, *, allow_nan: bool = False) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is not JSON, has NaN or infinity and not ``allow_nan``, one name twice in an object, is
            deeper than the interpreter can follow, or is made of so many lists, objects or short values that
            it would fill the memory.
    """
    containers = content.count(b"{") + content.count(b"[")
    if containers > _FREE_CONTAINERS + len(content) // _BYTES_PER_CONTAINER:
        raise ValueError("more lists and objects than its length can hold in earnest")
    if containers + content.count(b",") > _FREE_VALUES + len(content) // _BYTES_PER_VALUE:
        raise ValueError("more values than its length can hold in earnest")
    try:
        return json.loads(
            content,
            object_pairs_hook=_distinct,
            parse_constant=None if allow_nan else _no_constant,
            parse_float=None if allow_nan else _finite,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value of a small JSON file of metadata; errors as :func:`parse_json`, and OSError."""
    return parse_json(read_regular(path, MAX_METADATA_BYTES))


def describe_invalid(error: Exception) -> str:
    """The first thing that is wrong, where and what, of an error of :func:`parse_json` or of pydantic."""
    if not isinstance(error, ValidationError):
        return str(error)
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in detail["loc"])[:_LONGEST_PLACE]
    message = str(detail["msg"])
    return f"{printable(place)}: {message}" if place else message


def check_depth(value: Any, what: str) -> None:
    """Refuse nested lists and mappings that code which recurses into them could not follow.

    Raises:
        ValueError: more than :data:`MAX_DEPTH` levels.
    """
    level: Sequence[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _parts(outer)]
        if not level:
            return
    raise ValueError(f"{what}: nested more than {MAX_DEPTH} levels deep")


def check_no_links(root: Path, paths: Iterable[str]) -> None:
    """None of ``paths`` below ``root``, nor a folder on the way to one, is a link. ``root`` may be one.

    Missing files are skipped: whoever opens them reports that.

    Raises:
        CorruptCacheError: naming the link.
    """
    seen = {"", "."}
    for path in paths:
        place = path
        while place not in seen:
            seen.add(place)
            try:
                mode = (root / place).lstat().st_mode
            except OSError:
                mode = 0
            if stat.S_ISLNK(mode):
                raise CorruptCacheError(
                    f"{root / place} is a link: a cache holds its own files; copy the cache with its links "
                    "followed (cp -rL)"
                )
            place = place.rpartition("/")[0]


def check_writes_stay(root: Path, paths: Iterable[str], otherwise: str) -> None:
    """As :func:`check_no_links`, of a folder that is written to.

    Args:
        otherwise: what to do instead of copying the folder, as ``give another --out``.

    Raises:
        UsageError: naming the link.
    """
    try:
        check_no_links(root, paths)
    except CorruptCacheError as error:
        place = str(error).partition(" is a link")[0]
        raise UsageError(
            f"{place} is a link, and a run writes only into its own folder: copy the run with its links "
            f"followed (cp -rL), or {otherwise}"
        ) from None


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is larger than any number")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
