"""Opening a cache by its URL: the manifest from the bucket, the rows through the local cache."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import SaecacheError
from ..manifest import FileInfo, Manifest
from ..manifest_file import load_manifest
from ..provenance import PROVENANCE, provenance_facts
from ..untrusted_json import MAX_METADATA_BYTES, parse_json
from .cache_objects import Root, changes_explained, read_root
from .downloads.cache import DownloadCache
from .downloads.settings import check_limit, open_download_cache
from .places.by_url import open_remote_folder
from .places.object_requests import OnBytes
from .places.remote_folder import RemoteFolder
from .places.retries import Patience
from .places.urls import is_url
from .shards import RemoteShards

if TYPE_CHECKING:
    from ...distributed.group import Group


def open_remote(
    url: str,
    *,
    local: DownloadCache | None = None,
    patience: Patience | None = None,
    group: "Group | None" = None,
) -> tuple[str, Manifest, RemoteShards]:
    """The tidy URL of the cache at ``url``, its manifest, and its files as they are wanted.

    The first process of a ``group`` reads the manifest, and all others get it from there.

    Raises:
        UsageError: no cache there, a newer format, no access, or a local cache that is too small.
        IncompleteCacheError: its push is under way, or stopped.
        CorruptCacheError: the manifest contradicts itself.
        RemoteError: the object store does not answer.
    """
    location = open_remote_folder(url, patience)
    if group is None or group.size == 1:
        manifest = read_root(location).manifest
    else:
        content = group.on_first(lambda: read_root(location).content.decode("utf-8"))
        manifest = Root.parse(content.encode("utf-8"), location.url).manifest
    local = local or open_download_cache()
    check_limit(local, max((file.size for file in manifest.files), default=0), location.url)
    return location.url, manifest, RemoteShards(fetch_from(location, manifest), manifest, local)


def read_manifest_at(place: Path | str) -> Manifest:
    """The checked manifest of the cache in a folder or at a URL; errors as :func:`open_remote`."""
    return read_root(open_remote_folder(str(place))).manifest if is_url(place) else load_manifest(Path(place))


def read_remote_provenance(url: str) -> dict[str, Any]:
    """As :func:`read_provenance`, of the cache at ``url``."""
    try:
        return provenance_facts(parse_json(open_remote_folder(url).get(PROVENANCE, MAX_METADATA_BYTES)))
    except (SaecacheError, ValueError):
        return {}  # nothing depends on them


def fetch_from(location: RemoteFolder, manifest: Manifest) -> Callable[[FileInfo, Path, OnBytes], None]:
    """Downloads files of the cache, checked against the manifest; says what became of missing ones."""

    def fetch(file: FileInfo, target: Path, on_bytes: OnBytes) -> None:
        with changes_explained(
            location, manifest, "while it was being read", "run again to use what is there now"
        ):
            location.download(
                file.path, target, size=file.size, sha256=file.sha256, on_bytes=on_bytes, durable=False
            )

    return fetch
