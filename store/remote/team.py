"""The caches of a team: a table of what lies below a prefix, and the one with a given fingerprint.

Both read the manifests alone; of a cache that is not complete, its journal or the claim of its harvest.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ...common.counts import format_bytes
from ...common.errors import CorruptCacheError, SaecacheError, UsageError
from ...common.printable import printable
from ...common.tables import align_columns
from ..identity import fingerprint
from ..layout import TOP_FOLDERS
from ..manifest import Manifest
from ..untrusted_json import describe_invalid
from ..writing.journal import JOURNAL, WORK_FOLDER, Journal, parse_journal
from .cache_objects import HARVEST_CLAIM, HARVEST_WORK, ROOT, UNFINISHED, find_root
from .claims import read_claim
from .places.by_url import open_remote_folder
from .places.failures import AccessError, MissingObjectError
from .places.remote_folder import RemoteFolder
from .places.retries import Patience
from .places.urls import is_url
from .transfer import DEFAULT_CONCURRENCY

VARIABLE = "SAECACHE_TEAM"
MAX_DEPTH = 4  # folders below the prefix that are looked into
MAX_SHOWN = 120  # characters of a fact in the table
MAX_LISTED_BYTES = 16 << 20  # of a manifest, some 100,000 shards: one object must not keep a team waiting

State = Literal["complete", "unfinished", "unreadable"]


@dataclass(frozen=True)
class Listed:
    """One cache. Facts that its manifest does not give are empty; ``problem`` says why it is unreadable.

    Of a harvest that has not ended ``rows`` are those that its last commit holds.
    """

    url: str
    state: State
    modified: datetime | None
    model: str = ""
    hooks: tuple[str, ...] = ()
    dataset: str = ""
    rows: int = 0
    context: int = 0
    normalization: str = ""
    size: int = 0
    fingerprint: str = ""
    problem: str = ""


def list_caches(url: str, *, patience: Patience | None = None) -> list[Listed]:
    """Every cache at ``url`` and up to four folders below it, by URL.

    Raises:
        AccessError: no such bucket, or no right to list it.
    """
    found: list[Listed] = []
    known: dict[str, Listed | None] = {}  # by links a folder of this machine can have any number of names
    level = [open_remote_folder(url, patience)]
    pool = ThreadPoolExecutor(DEFAULT_CONCURRENCY, "saecache-list")
    try:
        for depth in range(MAX_DEPTH + 1):
            new = {name: place for place in reversed(level) if (name := _real_name(place)) not in known}
            looked = dict(zip(new, pool.map(_look_below if depth else _look, new.values()), strict=True))
            known |= {name: listed for name, (listed, _) in looked.items()}
            for place in level:
                if (listed := known[_real_name(place)]) is not None:
                    found.append(replace(listed, url=place.url))
            level = [place for _, below in looked.values() for place in below]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # who stops this does not wait for a silent server
    return sorted(found, key=lambda listed: listed.url)


def _real_name(place: RemoteFolder) -> str:
    """What all names of a folder have in common; of an object store that is its URL."""
    return place.url if place.disk is None else os.path.realpath(place.disk)


def _look_below(place: RemoteFolder) -> tuple[Listed | None, list[RemoteFolder]]:
    """As :func:`_look`; a folder of this machine that may not be listed does not hide the others."""
    try:
        return _look(place)
    except AccessError as error:
        if place.disk is None:
            raise
        return Listed(place.url, "unreadable", None, problem=str(error)), []


def _look(place: RemoteFolder) -> tuple[Listed | None, list[RemoteFolder]]:
    """(the cache at ``place`` if there is one, else the places below it)."""
    folders, objects = place.folders()
    modified = {info.key: info.modified for info in objects}
    for info in objects:
        if info.key in (ROOT, UNFINISHED) and info.size > MAX_LISTED_BYTES:
            problem = f"{info.key} has {info.size} bytes, more than the {MAX_LISTED_BYTES} that are read here"
            return Listed(place.url, "unreadable", info.modified, problem=problem), []
    states: dict[str, State] = {ROOT: "complete", UNFINISHED: "unfinished"}
    names = [name for name in folders if name not in (HARVEST_WORK, WORK_FOLDER)]
    below = [place.child(name) for name in names]
    # What is written there, or claimed, may lie above other caches by mistake: it does not hide them.
    beside = [place.child(name) for name in names if name not in TOP_FOLDERS]
    key = ROOT
    try:
        for key, state in states.items():
            if key in modified and (root := find_root(place, key)) is not None:
                return _describe(place.url, state, modified[key], root.manifest), []
        if WORK_FOLDER in folders and (written := _describe_writing(place)) is not None:
            return written, beside
        key = HARVEST_CLAIM
        if any(info.key == key and info.size > MAX_LISTED_BYTES for info in objects):
            raise CorruptCacheError(f"{place.url}/{key} is larger than a claim")
        if key in modified and (claim := read_claim(place, key)) is not None:
            return Listed(place.url, "unfinished", modified[key], fingerprint=claim.fingerprint), beside
    except (AccessError, CorruptCacheError) as error:  # refused for this object: others can be read
        return Listed(place.url, "unreadable", modified.get(key), problem=str(error)), beside
    except UsageError as error:
        if "format version" in str(error):
            return Listed(place.url, "unreadable", modified.get(key), problem=str(error)), []
    return None, below


def _describe_writing(place: RemoteFolder) -> Listed | None:
    """A cache that is written into a folder, or whose writing was interrupted, from its journal.

    None where there is no journal: nothing is committed yet.
    """
    key = f"{WORK_FOLDER}/{JOURNAL}"

    def parse(content: bytes) -> tuple[Journal, str]:
        try:
            journal = parse_journal(content)
            return journal, fingerprint(journal.identity)
        except ValueError as error:
            raise CorruptCacheError(f"{place.url}/{key} is damaged: {describe_invalid(error)}") from None

    if (info := place.head(key)) is None:
        return None
    try:
        journal, known = place.read(key, MAX_LISTED_BYTES, parse)
    except MissingObjectError:  # it was finished or removed meanwhile
        return None
    identity = journal.identity
    hooks, context, storage = (identity.get(name) for name in ("hooks", "context", "storage"))
    storage = storage if isinstance(storage, Mapping) else {}
    return Listed(
        url=place.url,
        state="unfinished",
        modified=info.modified,
        model=_name(identity.get("model"), "name"),
        hooks=tuple(hooks) if isinstance(hooks, Mapping) else (),
        dataset=_name(identity.get("text"), "dataset", "name", "kind"),
        rows=journal.train_rows + journal.heldout_rows,
        context=context if isinstance(context, int) else 0,
        normalization=f"{storage.get('normalization', '')} {storage.get('dtype', '')}".strip(),
        fingerprint=known,
    )


def _describe(url: str, state: State, modified: datetime | None, manifest: Manifest) -> Listed:
    identity = manifest.identity
    return Listed(
        url=url,
        state=state,
        modified=modified,
        model=_name(identity.get("model"), "name"),
        hooks=tuple(manifest.hooks),
        dataset=_name(identity.get("text"), "dataset", "name", "kind"),
        rows=manifest.train_rows + manifest.heldout_rows,
        context=manifest.context,
        normalization=f"{manifest.normalization} {manifest.dtype}",
        size=sum(file.size for file in manifest.files),
        fingerprint=manifest.fingerprint,
    )


def _name(part: Any, *keys: str) -> str:
    """What the identity calls its model or text; the writer of a cache may call it anything, or nothing."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        return next((str(part[key]) for key in keys if isinstance(part.get(key), str)), "")
    return ""


def format_listing(found: list[Listed], url: str) -> str:
    """A table, one line for each cache; places are relative to ``url``."""
    rows = [_COLUMNS, *(_cells(listed, url.rstrip("/")) for listed in found)]
    return "\n".join(align_columns(rows, _RIGHT))


_COLUMNS = (
    *("cache", "model", "hooks", "dataset", "rows", "context"),
    *("stored", "size", "date", "fingerprint", ""),
)
_RIGHT = (4, 5, 7)


def _cells(listed: Listed, url: str) -> tuple[str, ...]:
    place = listed.url.removeprefix(url).strip("/") or listed.url.rsplit("/", 1)[-1]
    date = listed.modified.strftime("%Y-%m-%d %H:%M") if listed.modified else ""
    if listed.state == "unreadable":
        cells = (place, "", "", "", "", "", "", "", date, "", f"unreadable: {listed.problem}")
    else:
        hooks = ",".join(listed.hooks[:3]) + (f",+{len(listed.hooks) - 3}" if len(listed.hooks) > 3 else "")
        cells = (
            place,
            listed.model[:MAX_SHOWN],
            hooks[:MAX_SHOWN],
            listed.dataset[:MAX_SHOWN],
            f"{listed.rows:,}",
            f"{listed.context:,}",
            listed.normalization[:MAX_SHOWN],
            format_bytes(listed.size),
            date,
            listed.fingerprint[:12],
            "" if listed.state == "complete" else "not complete",
        )
    return tuple(printable(cell) for cell in cells)


def team_locations(configured: Iterable[str] = ()) -> list[str]:
    """The locations of the configuration, then those of SAECACHE_TEAM (separated by commas or spaces)."""
    named = re.split(r"[,\s]+", os.environ.get(VARIABLE, ""))
    return list(dict.fromkeys(place for place in [*configured, *named] if place))


def find_cache(
    fingerprint: str, places: Sequence[str], *, patience: Patience | None = None
) -> str | Path | None:
    """The first finished cache with this fingerprint at or below one of ``places`` (URLs or folders).

    A cache whose manifest has more than :data:`MAX_LISTED_BYTES` is not found.

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
