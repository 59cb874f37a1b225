"""A server that sends its clients to another host: that host never sees credentials or tokens."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.store.remote.places.failures import AccessError

SECRETS = ("x-amz-security-token", "authorization", "x-amz-server-side-encryption-customer-key")
VERBS: dict[str, Callable[[RemoteFolder, Path], object]] = {
    "read": lambda folder, _: folder.get("k", 1000),
    "download": lambda folder, path: folder.download("k", path / "k", size=2, sha256="0" * 64),
    "checksum": lambda folder, _: folder.checksum("k", size=2),
    "head": lambda folder, _: folder.head("k"),
    "objects": lambda folder, _: folder.objects(),
    "folders": lambda folder, _: folder.folders(),
    "put": lambda folder, _: folder.put("k", b"ok"),
    "delete": lambda folder, _: folder.delete(["k"]),
}


@dataclass
class Hosts:
    """``endpoint`` redirects every request to another host; ``received`` are the headers that came there."""

    endpoint: str
    received: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture(params=[301, 302, 307, 308])
def hosts(request: pytest.FixtureRequest, team: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.server is first:
                self.send_response(request.param)
                self.send_header("Location", f"http://localhost:{second.server_port}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            found.received.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"ok")

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of the base class

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    first, second = (ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
    found = Hosts(f"http://127.0.0.1:{first.server_port}")
    for server in (first, second):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
    yield found
    for server in (first, second):
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("verb", VERBS)
def test_a_session_token_goes_to_no_other_host(
    hosts: Hosts, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-5c1e")
    folder = open_remote_folder("s3://bucket/team")
    with pytest.raises(AccessError, match="redirects to another"):
        VERBS[verb](folder, tmp_path)
    assert hosts.received == []


def test_keys_alone_are_followed_without_them(hosts: Hosts) -> None:
    """As servers need that keep their objects with a content delivery network."""
    assert open_remote_folder("s3://bucket/team").get("k", 1000) == b"ok"
    assert hosts.received
    assert not any(name in headers for headers in hosts.received for name in SECRETS)


@pytest.mark.parametrize("profile", [True, False], ids=["of a profile", "of a role"])
def test_other_sources_of_tokens(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: bool
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if profile:
        text = "[temporary]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n"
        (tmp_path / "credentials").write_text(text)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_PROFILE", "temporary")
    else:
        role = _RoleServer()
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
        (tmp_path / "token").write_text("t")
    with pytest.raises(AccessError, match="redirects to another"):
        open_remote_folder("s3://bucket/team").get("k", 1000)
    assert hosts.received == []
    if not profile:
        assert role.asked == 1  # it may be asked, although it is another host
        role.close()


def test_a_customer_key_goes_to_no_other_host(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "sse-c")
    with pytest.raises(AccessError, match="redirects to another"):
        open_remote_folder("s3://bucket/team").get("k", 1000)
    assert hosts.received == []


def test_behind_a_proxy_a_warning_says_what_cannot_be_refused(
    team: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-5c1e")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example.com")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    open_remote_folder("s3://bucket/team")
    assert "redirects to another host" in caplog.text
    assert "token-5c1e" not in caplog.text
    caplog.clear()
    monkeypatch.setenv("NO_PROXY", "store.example.com")
    open_remote_folder("s3://bucket/team")
    assert caplog.text == ""


class _RoleServer:
    """Hands out temporary credentials, as the agent of a container does; not at the endpoint's address."""

    def __init__(self) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = (
                    b'{"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", '
                    b'"Expiration": "2099-01-01T00:00:00Z"}'
                )
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Nothing on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
        self.url = f"http://127.0.0.2:{self._server.server_port}/credentials"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
