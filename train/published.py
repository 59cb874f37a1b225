"""The files of a published SAE: what a place has of it, and a checked copy on this machine.

``saecache.json`` lists every file with its size and sha256. It may come from anybody: of what it lists, only
the two files of an SAE are fetched.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import CorruptCacheError, SaecacheError, UsageError
from ..store.remote.downloads.settings import default_folder
from ..store.remote.places.by_url import open_remote_folder
from ..store.remote.places.failures import MissingObjectError
from ..store.remote.places.remote_folder import RemoteFolder
from ..store.remote.places.retries import Patience
from ..store.untrusted_json import parse_json
from .sae import CONFIG_FILE, WEIGHTS_FILE

MANIFEST_NAME = "saecache.json"
FORMAT_VERSION = 1
SAE_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_MAX_MANIFEST_BYTES = 1 << 20


class PublishedFile(NamedTuple):
    """What a file must be: ``size`` in bytes, and its sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PublishedFiles:
    """The content of ``saecache.json``: files by name, and the fingerprint of the cache."""

    files: dict[str, PublishedFile]
    fingerprint: str

    @classmethod
    def of(cls, folder: Path, fingerprint: str) -> "PublishedFiles":
        """All files in ``folder``."""
        files = {}
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = PublishedFile(path.stat().st_size, digest)
        return cls(files, fingerprint)

    @classmethod
    def parse(cls, content: bytes, where: str) -> "PublishedFiles":
        """
        Raises:
            UsageError: of a newer version.
            CorruptCacheError: it is something else.
        """
        try:
            value: Any = parse_json(content)
            if value["format_version"] != FORMAT_VERSION:
                raise UsageError(
                    f"{where} has format version {value['format_version']!r:.20}: update saecache"
                )
            files = {
                str(n): PublishedFile(int(f["size"]), str(f["sha256"])) for n, f in value["files"].items()
            }
            sound = all(f.size >= 0 and re.fullmatch("[0-9a-f]{64}", f.sha256) for f in files.values())
            if not sound or not files.keys() >= {*SAE_FILES}:
                raise ValueError
            return cls(files, str(value["cache_fingerprint"]))
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptCacheError(f"{where} is no list of the files of an SAE") from None

    def to_json(self) -> bytes:
        files = {name: file._asdict() for name, file in self.files.items()}
        value = {"format_version": FORMAT_VERSION, "cache_fingerprint": self.fingerprint, "files": files}
        return (json.dumps(value, indent=2) + "\n").encode()


def read_published(place: RemoteFolder) -> PublishedFiles | None:
    """What ``saecache.json`` of the place says; None where there is none."""
    where = f"{place.url}/{MANIFEST_NAME}"
    try:
        return place.read(MANIFEST_NAME, _MAX_MANIFEST_BYTES, lambda c: PublishedFiles.parse(c, where))
    except MissingObjectError:
        return None


def fetch_sae(url: str, patience: Patience | None = None) -> Path:
    """A folder of this machine with the SAE at ``url``: downloaded once, and checked each time.

    It is below the folder of downloads, under the sha256 of its files, and stays until somebody removes it.

    Raises:
        UsageError: there is no SAE, or no access.
        CorruptCacheError: other bytes come than ``saecache.json`` says, each time.
        RemoteError: the place does not answer.
    """
    place = open_remote_folder(url, patience)
    files = read_published(place)
    wanted = {name: files.files[name] if files else _look(place, name) for name in SAE_FILES}
    digest = hashlib.sha256("".join(file.sha256 for file in wanted.values()).encode()).hexdigest()
    folder = default_folder() / "saes" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in wanted.items():
            if not _is_there(folder / name, file):
                place.download(name, folder / name, size=file.size, sha256=file.sha256)
    except OSError as error:
        raise SaecacheError(f"{folder} cannot be written: {error.strerror}; set SAECACHE_CACHE_DIR") from None
    return folder


def _look(place: RemoteFolder, name: str) -> PublishedFile:
    """Look up a file of an SAE that was copied there by other means than ``saecache publish``."""
    info = place.head(name)
    if info is None:
        raise UsageError(
            f"no SAE at {place.url}: it has no {name}; expected what 'saecache publish' writes, or the files "
            "of an SAE's folder"
        )
    return PublishedFile(info.size, info.sha256 or place.checksum(name, size=info.size))


def _is_there(path: Path, file: PublishedFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
