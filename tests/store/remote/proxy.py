"""A proxy in front of the real server that breaks some requests in the ways networks and servers do."""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from ...killing import DEADLINE_SECONDS

KINDS = (
    "status",  # answer with ``status`` and an S3 error ``code``, without asking the server
    "reset",  # send ``after`` bytes of the body, then a TCP reset
    "truncate",  # right Content-Length, ``after`` bytes of the body, then an orderly end
    "short",  # a Content-Length of ``after``, and that many bytes: whole as far as HTTP can tell
    "stall",  # send ``after`` bytes of the body, then nothing for ``seconds``
    "flip",  # one byte of the answer's body is another (the one at ``after``)
    "flip_request",  # one byte of the request's body is another on its way to the server
    "etag",  # another ETag
    "garbage",  # something that is not HTTP
    "page",  # 200 and a page for people, as of a captive portal
    "document",  # the same, and it is no XML
    "empty",  # 200 and nothing
    "silence",  # no answer for ``seconds``
    "trickle",  # one byte of the body every ``seconds``
    "endless",  # every page of a listing says that there is another one
    "lost_answer",  # the server does it, and the answer is lost in a reset
)


Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers without the length, and body."""


@dataclass
class Fault:
    """What happens to the first ``times`` requests whose method and path match."""

    kind: str
    method: str = ""
    path: str = ""  # regular expression, found anywhere in the decoded path and query
    times: int = 1
    after: int = 100
    status: int = 500
    code: str = "InternalError"
    seconds: float = 30.0
    skip: int = 0  # let so many matching requests through first
    met: int = 0


@dataclass
class Seen:
    method: str
    path: str
    fault: str | None


@dataclass
class Proxy:
    """``url`` is the endpoint to use; ``seen`` the requests so far, ``under_way`` those not answered yet.

    ``before`` is called with each request, ``after`` when the server has done it and the client has no answer
    yet; an OSError of theirs ends the connection.
    """

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    before: Callable[[str, str], None] | None = None
    after: Callable[[str, str], None] | None = None
    rewrite: "Callable[[str, str, Answer], Answer] | None" = (
        None  # what a server of another kind would answer
    )
    under_way: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def add(self, kind: str, **settings: Any) -> Fault:
        assert kind in KINDS, kind
        fault = Fault(kind, **settings)
        with self._lock:
            self.faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self.faults.clear()
            self.seen.clear()
            self.before = self.after = self.rewrite = None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as under way."""
        with self._lock:
            self.under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self.under_way -= 1

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The fault of this request, which is used up by it."""
        with self._lock:
            for fault in self.faults:
                if fault.method in ("", method) and re.search(fault.path, path) and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    fault.met += 1
                    self.seen.append(Seen(method, path, fault.kind))
                    return fault
            self.seen.append(Seen(method, path, None))
            return None

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away; that is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]

    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = urlsplit(self.proxy.upstream)
        assert address.hostname
        self.upstream = http.client.HTTPConnection(address.hostname, address.port, timeout=DEADLINE_SECONDS)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def do_request(self) -> None:
        with self.proxy.counted():
            self._pass_on(unquote(self.path))

    def _pass_on(self, path: str) -> None:
        if self.proxy.before:
            self.proxy.before(self.command, path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client is gone
            self.close_connection = True
            return
        fault = self.proxy.fault_for(self.command, path)
        if fault and fault.kind == "status":
            text = f"<Error><Code>{fault.code}</Code><Message>by the proxy</Message></Error>".encode()
            self._answer(fault.status, [("Content-Type", "application/xml")], text)
            return
        if fault and fault.kind == "flip_request" and body:
            body = _flipped(body, fault.after)
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # the Host too: it is part of the signature
            self.upstream.putheader(name, value)
        self.upstream.endheaders(body)
        answer = self.upstream.getresponse()
        content = answer.read()
        if self.proxy.after:
            self.proxy.after(self.command, path)
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN]
        if self.command == "HEAD":
            headers += [("Content-Length", answer.headers["Content-Length"] or "0")]
        status = answer.status
        if self.proxy.rewrite:
            status, headers, content = self.proxy.rewrite(self.command, path, (status, headers, content))
        self._answer(status, headers, content, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_request  # noqa: N815

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None = None
    ) -> None:
        kind = fault.kind if fault else ""
        if kind == "lost_answer":
            self._reset()
            return
        if fault and kind == "silence":
            self.proxy.closing.wait(fault.seconds)
            self.close_connection = True
            return
        if kind == "garbage":
            self.wfile.write(b"what was the question?\r\n\r\n")
            self.close_connection = True
            return
        if kind in _PAGES:
            status, headers, content = 200, [("Content-Type", "text/html")], _PAGES[kind]
        if kind == "endless":
            more = b"<NextContinuationToken>x</NextContinuationToken><IsTruncated>true</IsTruncated>"
            content = content.replace(b"<IsTruncated>false</IsTruncated>", more)
        if fault and kind == "flip" and content:
            content = _flipped(content, fault.after)
        if kind == "etag":
            headers = [
                (n, '"00000000000000000000000000000000"' if n.lower() == "etag" else v) for n, v in headers
            ]
        if fault and kind == "short":
            content = content[: fault.after]
        cut = (
            min(fault.after, len(content))
            if fault and kind in ("reset", "truncate", "stall")
            else len(content)
        )
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault and kind == "trickle":
            for byte in content if self.command != "HEAD" else b"":
                self.wfile.write(bytes([byte]))
                if self.proxy.closing.wait(fault.seconds):
                    break
        elif self.command != "HEAD":
            self.wfile.write(content[:cut])
        if fault and kind == "stall":
            self.proxy.closing.wait(fault.seconds)
        if kind in ("truncate", "stall"):
            self.close_connection = True
        if kind == "reset":
            time.sleep(0.02)  # what was written goes out first
            self._reset()

    def _reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the terminal."""


_PAGES = {
    "page": b"<html><body>Please log in</body></html>",
    "document": b"<!DOCTYPE html><html><meta charset=utf-8><p>Please log in<br>or not</html>",
    "empty": b"",
}
_OWN = {"content-length", "transfer-encoding", "connection", "keep-alive"}


def _flipped(content: bytes, place: int) -> bytes:
    place = min(place, len(content) - 1)
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@contextlib.contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
