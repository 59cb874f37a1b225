"""Asking a team's locations whether somebody has made a cache already."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...common.errors import SaecacheError
from .listing import list_caches
from .settings import Patience
from .urls import is_url

VARIABLE = "SAECACHE_TEAM"


def team_locations(configured: Iterable[str] = ()) -> list[str]:
    """The locations of the configuration, then those of SAECACHE_TEAM (separated by commas or spaces)."""
    named = re.split(r"[,\s]+", os.environ.get(VARIABLE, ""))
    return list(dict.fromkeys(place for place in [*configured, *named] if place))


def find_cache(
    fingerprint: str, places: Sequence[str], *, patience: Patience | None = None
) -> str | Path | None:
    """The first finished cache with this fingerprint at or below one of ``places`` (URLs or folders).

    Returns:
        Its URL, for a folder its path, or None.

    Raises:
        SaecacheError: a location cannot be asked.
    """
    for place in places:
        folder = None if is_url(place) else Path(place).expanduser().resolve()
        try:
            found = list_caches(place if folder is None else f"file://{folder}", patience=patience)
        except SaecacheError as error:
            raise type(error)(f"asking the team for this cache: {error}") from None
        for cache in found:
            if cache.fingerprint == fingerprint and cache.state == "complete":
                return cache.url if folder is None else Path(cache.url.removeprefix("file://"))
    return None
