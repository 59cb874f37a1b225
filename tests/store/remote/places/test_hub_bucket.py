"""Buckets of the Hugging Face Hub, by their S3 protocol, in the ways in which they differ from S3.

Metadata headers are dropped, so no sha256 is recorded beside an object; GETs are answered with a redirect to
another host; ETags are no md5. A proxy in front of the S3 server of the tests behaves so.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from saecache.store import open_cache
from saecache.store.remote import open_remote_folder
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.team import list_caches
from saecache.store.remote.verify import verify_remote
from saecache.testing.known_rows import cache_bytes

from ..conftest import HOOK, PASSING
from ..proxy import Answer, Proxy

SECRETS = ("authorization", "x-amz-security-token")


class Cdn:
    """Another host that has what was asked of the bucket, and notes the headers that came there."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.received: list[set[str]] = []
        self.cut = 0  # so many answers end early
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.received.append({name.lower() for name in self.headers})
                content = outer.contents[self.path.strip("/")]
                status = 200
                if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    whole, status = len(content), 206
                    content = content[int(found[1]) : int(found[2]) + 1]
                self.send_response(status)
                if status == 206:
                    shown = f"bytes {found[1]}-{int(found[1]) + len(content) - 1}/{whole}"
                    self.send_header("Content-Range", shown)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if outer.cut and len(content) > 1:
                    outer.cut -= 1
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Nothing on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def rewrite(self, method: str, path: str, answer: Answer) -> Answer:
        """The answer of a bucket of the Hub, for the one that S3 gives."""
        status, headers, content = answer
        headers = [
            (n, _tag(v) if n.lower() == "etag" and "partNumber" not in path else v) for n, v in headers
        ]
        headers = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-meta-")]
        if b"<ListBucketResult" in content:
            content = re.sub(
                rb"<ETag>(.*?)</ETag>",
                lambda found: b"<ETag>" + _tag(found[1].decode()).encode() + b"</ETag>",
                content,
            )
        elif method == "GET" and status == 200:
            name = hashlib.sha256(path.encode() + content).hexdigest()
            self.contents[name] = content
            return 302, [("Location", f"{self.url}/{name}")], b""
        return status, headers, content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _tag(etag: str) -> str:
    """Another ETag for another content, and no md5."""
    plain = etag.replace("&#34;", "").replace("&quot;", "").strip('"')
    return f'"xet-{hashlib.sha256(plain.encode()).hexdigest()[:40]}"'


@pytest.fixture
def cdn(proxy: Proxy) -> Iterator[Cdn]:
    """The tests' bucket as one of the Hub."""
    found = Cdn()
    proxy.rewrite = found.rewrite
    yield found
    found.close()
    assert not any(secret in headers for headers in found.received for secret in SECRETS)


def test_the_proxy_behaves_as_such_a_bucket(team: str, proxy: Proxy, cdn: Cdn) -> None:
    folder = open_remote_folder(team)
    assert folder.put("x", b"content")
    info = folder.head("x")
    assert info is not None and info.sha256 is None and info.etag is not None and info.etag.startswith("xet-")
    assert [listed.etag for listed in folder.objects()] == [info.etag]
    assert folder.get("x", 100) == b"content" and len(cdn.received) == 2
    assert not folder.put("x", b"other", create=True)


def test_push_pull_stream_and_verify(
    team: str, proxy: Proxy, cdn: Cdn, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    Push(cache_path, team).run()
    assert list_caches(team)[0].state == "complete"
    assert verify_remote(team).ok and verify_remote(team, quick=True).ok
    Pull(team, tmp_path / "copy").run()
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)
    rows = torch.cat(list(open_cache(team).batches(HOOK, 64)))
    assert torch.equal(rows, torch.cat(list(open_cache(cache_path).batches(HOOK, 64))))
    assert len(cdn.received) > 20
    Removal(team).run()
    assert list_caches(team) == []


def test_a_second_push_reads_what_is_there_and_moves_nothing(
    team: str, proxy: Proxy, cdn: Cdn, cache_path: Path, other_cache: Path
) -> None:
    """Without a recorded sha256, and without an md5, only the bytes can tell."""
    Push(cache_path, team).run()
    cdn.received.clear()
    assert Push(cache_path, team).run().moved_objects == 0
    assert len(cdn.received) > 10


def test_faults_of_the_other_host_pass(
    team: str, proxy: Proxy, cdn: Cdn, cache_path: Path, tmp_path: Path
) -> None:
    cdn.cut = 4
    Push(cache_path, team, patience=PASSING).run()
    cdn.cut = 4
    Pull(team, tmp_path / "copy", patience=PASSING).run()
    assert cdn.cut == 0
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


def test_an_object_that_differs_is_sent_again(
    team: str, proxy: Proxy, cdn: Cdn, cache_path: Path, tmp_path: Path
) -> None:
    folder = open_remote_folder(team)
    file = next(path for path in sorted(cache_path.rglob("*")) if path.is_file() and "c" in path.parts)
    content = file.read_bytes()
    key = str(file.relative_to(cache_path))
    Push(cache_path, team).run()
    folder.put(key, bytes([content[0] ^ 1]) + content[1:])  # of the same size
    assert Push(cache_path, team).run().moved_objects == 1
    assert verify_remote(team).ok
