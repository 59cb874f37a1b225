"""The obstore store behind a URL, made when it is first asked."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError
from .credentials import s3_config
from .retries import Patience
from .urls import ObjectUrl

if TYPE_CHECKING:
    from obstore.store import MemoryStore, ObjectStore


class Backend:
    """One bucket. Its stores differ only in patience: for reads, writes, before and after a first answer."""

    def __init__(self, url: ObjectUrl, patience: Patience) -> None:
        self.patience = patience
        self.proven = False  # something answered before: a failure now is worth waiting out
        self._stores: dict[tuple[bool, bool], ObjectStore] = {}
        self._root = _existing_folder(Path("/", url.prefix)) if url.scheme == "file" else None
        self._make = _maker(url, patience, self._root)
        self.store(writing=False)  # wrong settings are said at once

    @property
    def stores_attributes(self) -> bool:
        """Whether objects can carry their sha256 beside them."""
        return self._root is None

    def key(self, path: str) -> str:
        """The name inside the store of the object ``path``, which begins with the URL's prefix."""
        if self._root is None:
            return path
        return Path("/", path).relative_to(self._root).as_posix().removeprefix(".")

    def path(self, key: str) -> str:
        """The inverse of :meth:`key`."""
        return key if self._root is None else (self._root / key).as_posix().lstrip("/")

    def store(self, *, writing: bool) -> "ObjectStore":
        wanted = (writing, self.proven)
        if wanted not in self._stores:
            self._stores[wanted] = self._make(*wanted)
        return self._stores[wanted]


def _maker(url: ObjectUrl, patience: Patience, root: Path | None) -> "Callable[[bool, bool], ObjectStore]":
    """Makes stores, all with the settings that the environment gives now; a closure: nothing shows them.

    Its arguments are: for writing, and whether something answered before.
    """
    s3: dict[str, Any] = {}
    if url.scheme == "s3":
        s3["config"], s3["credential_provider"] = s3_config()
        allow_http = _is_set("AWS_ALLOW_HTTP") or s3["config"].get("endpoint", "").startswith("http://")
    elif url.scheme == "az":
        allow_http = _is_set("AZURE_STORAGE_USE_EMULATOR") or _is_http("AZURE_ENDPOINT")
    else:
        allow_http = _is_http("GOOGLE_BASE_URL")

    def make(writing: bool, proven: bool) -> "ObjectStore":
        from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

        if url.scheme == "memory":
            return _memory(url.bucket)
        if root is not None:
            return LocalStore(prefix=root, automatic_cleanup=True)
        http: dict[str, Any] = {
            "client_options": patience.client(writing=writing, allow_http=allow_http),
            "retry_config": patience.retries(writing=writing, proven=proven),
        }
        try:
            if url.scheme == "s3":
                return S3Store(url.bucket, **s3, **http)
            return GCSStore(url.bucket, **http) if url.scheme == "gs" else AzureStore(url.bucket, **http)
        except Exception as error:  # noqa: BLE001 - whatever it is, it may quote credentials
            raise UsageError(
                f"{url}: the settings in the environment do not make a valid {url.scheme}:// connection "
                f"({type(error).__name__}); check its variables (AWS_*, GOOGLE_*, AZURE_*)"
            ) from None

    return make


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _is_http(variable: str) -> bool:
    return os.environ.get(variable, "").startswith("http://")


@cache
def _memory(bucket: str) -> "MemoryStore":
    """In-memory buckets live as long as the process, whoever opens them."""
    from obstore.store import MemoryStore

    return MemoryStore()


def _existing_folder(path: Path) -> Path:
    """Where a local store is rooted: removing objects cleans up empty folders below it, never above."""
    while not path.is_dir():
        path = path.parent
    return path
