"""A bucket on a real S3 server, reached directly (``team``) or through a proxy that breaks things; a Hub."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from saecache.store.remote import Patience, RemoteFolder, open_remote_folder

from .hub_server import WRITER, HubServer, running_hub
from .proxy import Proxy, running_proxy
from .server import BUCKET, S3Server, start_server, stop_server

HOOK = "resid_post.1"
USUAL = Patience()
# For what fails at once and never succeeds; also where requests are counted, and one must not be made twice
# because the machine is busy.
QUICK = replace(USUAL, first_backoff_seconds=0.01, max_backoff_seconds=0.1)
PASSING = replace(  # for what passes: a stall is noticed soon, and a busy machine has as long as users wait
    QUICK,
    connect_seconds=5,
    stall_seconds=0.5,
    upload_seconds=2,
    retry_seconds=USUAL.retry_seconds,
    first_retry_seconds=USUAL.retry_seconds,
    max_retries=1000,
)


@pytest.fixture(scope="session")
def source(make_source: Callable[..., Any]) -> Any:
    """One hook: every object costs several requests, and most tests move all of them."""
    return make_source(hooks={HOOK: 24})


@pytest.fixture(scope="session")
def cache_path(
    tmp_path_factory: pytest.TempPathFactory, source: Any, write_cache: Callable[..., Any]
) -> Path:
    """A finished cache that no test changes."""
    path: Path = tmp_path_factory.mktemp("shared") / "cache"
    write_cache(path, source)
    return path


@pytest.fixture
def other_cache(tmp_path: Path, source: Any, write_cache: Callable[..., Any]) -> Path:
    """Another cache than ``cache_path``; its files have the same names and sizes."""
    write_cache(tmp_path / "other", source, seed=1)
    return tmp_path / "other"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for each test process."""
    server = start_server(tmp_path_factory.mktemp("seaweed"))
    yield server
    stop_server(server)


@pytest.fixture(scope="session")
def shared_proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with running_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def team(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty team prefix; the environment is that of a user of the server."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex[:12]}"


@pytest.fixture
def proxy(team: str, shared_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """As ``team``, and everything that the test opens goes through the proxy."""
    shared_proxy.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared_proxy.url)
    yield shared_proxy
    shared_proxy.clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub, and the environment of a user who may write there."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server
        assert server.leaks == [], "a token went to the other host"


@pytest.fixture
def location(team: str) -> RemoteFolder:
    return open_remote_folder(team)


@pytest.fixture
def open_quickly() -> Callable[[str], RemoteFolder]:
    """A location that gives up soon: for tests of what never succeeds."""
    return lambda url: open_remote_folder(url, QUICK)


@pytest.fixture
def open_patiently() -> Callable[[str], RemoteFolder]:
    """A location that notices stalls soon and does not give up: for tests of what passes."""
    return lambda url: open_remote_folder(url, PASSING)
