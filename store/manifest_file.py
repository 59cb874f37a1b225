"""The manifest of a cache on disk, in the root zarr.json, and the files that it lists."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from ..common.lookups import exists, is_folder
from ..common.regular_files import read_regular
from ..common.versions import package_version
from .identity import sha256_of_json
from .manifest import FORMAT_VERSION, MANIFEST_ATTRIBUTE, MAX_MANIFEST_BYTES, Manifest
from .untrusted_json import check_no_links, describe_invalid, parse_json

PULL_FOLDER = ".pulling"  # in a folder that a pull from object storage has not finished


def load_manifest(path: Path | str) -> Manifest:
    """The manifest of the cache in folder ``path``, checked.

    Raises:
        UsageError: no such folder, something else than a cache, or a newer format.
        IncompleteCacheError: the cache is still being written.
        CorruptCacheError: the manifest contradicts itself.
    """
    path = Path(path)
    root = path / "zarr.json"
    if not is_folder(path):
        raise UsageError(f"no cache at {path}: there is no such folder")
    if not exists(root):
        if (path / ".writing").is_dir():
            raise IncompleteCacheError(
                f"the cache at {path} is unfinished: run the command that writes it again, "
                "it continues where it stopped"
            )
        if (path / PULL_FOLDER).is_dir():
            raise IncompleteCacheError(
                f"the cache at {path} is not whole: run the same 'saecache cache pull' again, "
                "it continues where it stopped"
            )
        raise UsageError(f"{path} is not a cache: it has no zarr.json")
    check_no_links(path, ["zarr.json"])
    try:
        content = read_regular(root, MAX_MANIFEST_BYTES)
    except ValueError:
        raise CorruptCacheError(
            f"{root}: more than {MAX_MANIFEST_BYTES} bytes, no manifest is that large"
        ) from None
    except OSError as error:
        raise CorruptCacheError(f"{root} cannot be read: {error.strerror}") from None
    return parse_manifest(content, str(root))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest inside the bytes of a root zarr.json, checked; ``where`` names them in errors."""
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CorruptCacheError(f"{where} is not valid JSON: {error}") from None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    values = attributes.get(MANIFEST_ATTRIBUTE) if isinstance(attributes, dict) else None
    if not isinstance(values, dict):
        raise UsageError(f"{where} has no attribute {MANIFEST_ATTRIBUTE!r}: this is not a saecache cache")
    _check_version(values, where)
    checksum = values.pop("checksum", None)
    try:
        if checksum != sha256_of_json(values):
            raise CorruptCacheError(f"{where}: the manifest does not match its own checksum")
        return Manifest.model_validate(values)
    except (ValidationError, RecursionError, UsageError) as error:
        raise CorruptCacheError(f"{where}: the manifest is not valid: {describe_invalid(error)}") from None


def _check_version(values: Mapping[str, Any], where: str) -> None:
    """Refuse a newer format before anything else of it is read: it names the saecache that reads it."""
    format_version = values.get("format_version")
    if not isinstance(format_version, int) or format_version <= FORMAT_VERSION:
        return
    needed = values.get("needs_saecache")
    known = isinstance(needed, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", needed) is not None
    newer = f"{needed} or later" if known else "of today"
    raise UsageError(
        f"{where} has format version {format_version}; this saecache ({package_version('saecache')}) reads "
        f"up to version {FORMAT_VERSION}: upgrade to saecache {newer} "
        f"(pip install --upgrade 'saecache{f'>={needed}' if known else ''}')"
    )


def check_files(path: Path, manifest: Manifest) -> None:
    """Check that every file is there, is no link, and has the right size. No content is read.

    Raises:
        CorruptCacheError: naming the first file that fails.
    """
    check_no_links(path, (file.path for file in manifest.files))
    for file in manifest.files:
        try:
            found = (path / file.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptCacheError(f"{path / file.path} is missing: the cache is not whole") from None
        if not stat.S_ISREG(found.st_mode):
            raise CorruptCacheError(f"{path / file.path} is not a file")
        if found.st_size != file.size:
            raise CorruptCacheError(
                f"{path / file.path} has {found.st_size} bytes, expected {file.size}: truncated or altered"
            )
