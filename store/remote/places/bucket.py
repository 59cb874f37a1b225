"""The connections to one bucket: made when they are first needed, and asked within bounds."""

import asyncio
import atexit
import os
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from ....common.errors import CorruptCacheError, SaecacheError, UsageError
from .credentials import s3_config
from .failures import RemoteError, UnreadableAnswerError, parse_failure, translate
from .hub.address import hub_endpoint, hub_token, parse_hub_path
from .redirects import refuse_redirects, sends_tokens
from .retries import Patience
from .urls import ObjectUrl, is_endpoint, redact_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
Purpose = Literal["reading", "writing", "parts", "removing singly"]
"""Of a connection: they differ in timeouts; parts are repeated; the last is for servers that cannot remove
many objects by one request.
"""
_PANICS = ("RustPanic", "PanicException")  # of the library, where an answer is not what it takes for granted


class Bucket:
    """One bucket, or for ``file://`` the folder that stands for it."""

    def __init__(self, url: ObjectUrl, patience: Patience) -> None:
        self.patience = patience
        self.has_answered = False
        self.removes_singly = False
        self._stores: dict[Purpose, ObjectStore] = {}
        self._root = _existing_folder(Path("/", url.prefix)) if url.scheme == "file" else None
        self._make, self.server, self.address = _maker(url, patience, self._root)
        self.store("reading")  # wrong settings are reported at once

    @property
    def stores_attributes(self) -> bool:
        """Whether objects can carry their sha256 beside them."""
        return self._root is None

    def key(self, path: str) -> str:
        """The name inside the store of the object ``path``, which begins with the URL's prefix."""
        if self._root is None:
            return path
        key = Path("/", path).relative_to(self._root).as_posix()
        return "" if key == "." else key

    def path(self, key: str) -> str:
        """The inverse of :meth:`key`."""
        return key if self._root is None else (self._root / key).as_posix().lstrip("/")

    def check_regular(self, name: str) -> None:
        """In a folder of this machine refuse a pipe or a device, which would be read without end.

        Raises:
            CorruptCacheError: the object ``name`` is one.
        """
        if self._root is None:
            return
        with suppress(OSError):  # a missing file is the library's to report
            if not stat.S_ISREG((self._root / name).stat().st_mode):
                raise CorruptCacheError(f"{self._root / name} is not a regular file: remove it")

    def store(self, purpose: Purpose) -> "ObjectStore":
        if purpose not in self._stores:
            self._stores[purpose] = self._make(purpose)
        return self._stores[purpose]

    @contextmanager
    def translated(
        self, what: str, where: str, passing: tuple[type[BaseException], ...] = ()
    ) -> Iterator[None]:
        """Translate what the library raises inside, except ``passing``; remember that something answered."""
        try:
            yield
        except SaecacheError:
            raise
        except passing:
            self.has_answered = True
            raise
        except TimeoutError:
            raise RemoteError(
                f"{what} at {where}: {self.server} took longer than {self.patience.upload_seconds:g} seconds "
                "to answer; run again, it continues"
            ) from None
        except (BaseError, FileNotFoundError, PermissionError, NotImplementedError) as error:
            self.has_answered = self.has_answered or parse_failure(error).status is not None
            raise translate(error, what, where, self.server) from None
        except BaseException as error:
            if type(error).__name__ not in _PANICS:
                raise
            raise UnreadableAnswerError(
                f"{what} at {where}: the answer of {self.server} makes no sense; run again, it continues"
            ) from None
        self.has_answered = True

    def ask(self, start: Callable[[], Awaitable[T]], *, bounded: bool = True) -> T:
        """The result of one request, which is cancelled when it takes longer than ``upload_seconds``.

        With ``bounded=False`` ``start`` sees to that itself.

        Raises:
            TimeoutError: there was no whole answer by then, whatever trickled in.
        """

        async def answer() -> T:
            return await asyncio.wait_for(start(), self.patience.upload_seconds if bounded else None)

        asked = asyncio.run_coroutine_threadsafe(answer(), _event_loop(os.getpid()))
        try:
            return asked.result()
        except BaseException:
            asked.cancel()
            raise


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Runs the requests of a process; a fork needs its own. The caller may have a running loop (Jupyter)."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"saecache-requests-{process}", daemon=True).start()
    atexit.register(wait_for_answers)
    return loop


def wait_for_answers(seconds: float = 5.0) -> None:
    """Wait, at the end of the process, while the library's threads are handing over an answer.

    Such a thread wakes us and then goes on a moment itself. If Python ends in that moment, the thread cannot
    get the interpreter any more, which aborts the process with a status as if the command had failed.
    """
    ours = {thread.ident for thread in threading.enumerate()}
    deadline = monotonic() + seconds
    while sys._current_frames().keys() - ours and monotonic() < deadline:
        sleep(0.001)


def _maker(
    url: ObjectUrl, patience: Patience, root: Path | None
) -> "tuple[Callable[[Purpose], ObjectStore], str, str | None]":
    """(makes stores, by the settings of the environment as it is now; the server to show; the address).

    The address is that of the bucket, where S3 and Google are asked for listings.

    The settings are in a closure, so that nothing shows them.
    """
    s3: dict[str, Any] = {}
    tokens = False
    if url.scheme == "s3":
        s3["config"], s3["credential_provider"] = s3_config()
        tokens = sends_tokens(s3["credential_provider"])
        endpoint = s3["config"].get("endpoint", "")
        allow_http = _is_set("AWS_ALLOW_HTTP") or endpoint.startswith("http://")
        variable = "AWS_ENDPOINT_URL"
    elif url.scheme == "hf":
        endpoint, variable = hub_endpoint(), "HF_ENDPOINT"
        allow_http = endpoint.startswith("http://")
        repository, _ = parse_hub_path(url.bucket)
        files = f"{endpoint}{repository.files}/resolve/{repository.quoted_revision}"
        token = hub_token()  # a redirect to another host, where large files are, does not carry it
        headers = {"default_headers": {"authorization": f"Bearer {token}"}} if token else {}
    else:
        variable = "AZURE_ENDPOINT" if url.scheme == "az" else "GOOGLE_BASE_URL"
        endpoint = os.environ.get(variable, "")
        allow_http = endpoint.startswith("http://") or (
            url.scheme == "az" and _is_set("AZURE_STORAGE_USE_EMULATOR")
        )

    if endpoint and not is_endpoint(endpoint):  # the library would panic; without the text, it may be secret
        raise UsageError(f"{url}: the endpoint is not a valid http:// or https:// URL; check {variable}")
    redirects = refuse_redirects(endpoint, s3["config"]["region"]) if tokens else {}

    def make(purpose: Purpose) -> "ObjectStore":
        if url.scheme == "memory":
            return _memory(url.bucket)
        if root is not None:
            return LocalStore(prefix=root, automatic_cleanup=True)
        http: dict[str, Any] = {
            "client_options": patience.client(writing=purpose != "reading", allow_http=allow_http)
            | redirects,
            "retry_config": patience.obstore_retries(parts=purpose == "parts"),
        }
        try:
            if url.scheme == "hf":
                http["client_options"] |= headers
                return HTTPStore(files, **http)
            if url.scheme == "s3":
                config = s3["config"] | (
                    {"disable_bulk_delete": True} if purpose == "removing singly" else {}
                )
                return S3Store(url.bucket, **(s3 | {"config": config}), **http)
            return GCSStore(url.bucket, **http) if url.scheme == "gs" else AzureStore(url.bucket, **http)
        except Exception as error:  # noqa: BLE001 - whatever it is, it may quote credentials
            raise UsageError(
                f"{url}: the settings in the environment do not make a valid {url.scheme}:// connection "
                f"({type(error).__name__}); check its variables (AWS_*, GOOGLE_*, AZURE_*, HF_*)"
            ) from None

    shown, address = redact_url(endpoint), None
    if url.scheme in ("s3", "gs"):
        own = "storage.googleapis.com" if url.scheme == "gs" else f"s3.{s3['config']['region']}.amazonaws.com"
        address = f"{shown or f'https://{own}'}{urlsplit(endpoint).path.rstrip('/')}/{url.bucket}"
    return make, shown or "the server", address


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


@cache
def _memory(bucket: str) -> "MemoryStore":
    """In-memory buckets live as long as the process, whoever opens them."""
    return MemoryStore()


def _existing_folder(path: Path) -> Path:
    """Where a local store is rooted: removing objects cleans up empty folders below it, never above."""
    while not path.is_dir():
        path = path.parent
    return path
