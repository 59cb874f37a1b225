"""The obstore store behind a URL, made when it is first asked."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .credentials import s3_config
from .settings import Patience
from .urls import ObjectUrl

if TYPE_CHECKING:
    from obstore.store import MemoryStore, ObjectStore


class Backend:
    """One bucket. Its stores differ only in patience: for reads, writes, before and after a first answer."""

    def __init__(self, url: ObjectUrl, patience: Patience) -> None:
        self.patience = patience
        self.proven = False  # something answered before: a failure now is worth waiting out
        self._url = url
        self._stores: dict[tuple[bool, bool], ObjectStore] = {}
        self._root = _existing_folder(Path("/", url.prefix)) if url.scheme == "file" else None
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
            self._stores[wanted] = self._make(writing)
        return self._stores[wanted]

    def _make(self, writing: bool) -> "ObjectStore":
        from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

        scheme, bucket = self._url.scheme, self._url.bucket
        if scheme == "memory":
            return _memory(bucket)
        if self._root is not None:
            return LocalStore(prefix=self._root, automatic_cleanup=True)
        http: dict[str, Any] = {"retry_config": self.patience.retries(proven=self.proven)}
        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        try:
            if scheme == "s3":
                config, provider = s3_config()
                allow_http = allow_http or config.get("endpoint", "").startswith("http://")
                http["client_options"] = self.patience.client(writing=writing, allow_http=allow_http)
                return S3Store(bucket, config=config, credential_provider=provider, **http)
            http["client_options"] = self.patience.client(writing=writing, allow_http=False)
            if scheme == "gs":
                return GCSStore(bucket, **http)
            return AzureStore(bucket, **http)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it may quote credentials
            raise UsageError(
                f"{self._url}: the settings in the environment do not make a valid {scheme}:// connection "
                f"({type(error).__name__}); check its variables (AWS_*, GOOGLE_*, AZURE_*)"
            ) from None


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
