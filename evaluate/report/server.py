"""Serves the page of a run from this machine; the latents are read from the disk as one scrolls.

The server listens on 127.0.0.1 only. It knows the page and the parts of the latents, by names that it makes
itself; no path of a request reaches the file system.
"""

import re
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from .data import ReportData, gather
from .page import render

ADDRESS = "127.0.0.1"
_PART = re.compile(r"/parts/([0-9]{1,6})/([a-z]+(?:-[0-9]{1,9})?)")


class PageServer(ThreadingHTTPServer):
    """The page of ``data``, and the parts that its script asks for."""

    daemon_threads = True  # an open connection does not keep the program from ending

    def __init__(self, data: ReportData, port: int) -> None:
        self.data = data
        self.page = render(data, served=True).encode("utf-8")
        super().__init__((ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before it has its answer is nothing to speak of; other errors are shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def find(self, path: str) -> tuple[str, bytes] | None:
        """The type and the content of what a request asks for; None if there is no such thing."""
        if path == "/":
            return "text/html; charset=utf-8", self.page
        asked = _PART.fullmatch(path)
        if asked is None or int(asked[1]) >= len(self.data.latents):
            return None
        parts = self.data.latents[int(asked[1])]
        content = None if parts is None else parts.read(asked[2])
        return None if content is None else ("application/octet-stream", content)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, *, with_content: bool) -> None:
        # A page of another site that lets its name point here must not read what is served (DNS rebinding).
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self.send_error(403, "This server answers to its own address only")
            return
        found = self.server.find(self.path.partition("?")[0])
        if found is None:
            self.send_error(404)
            return
        kind, content = found
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Nothing is printed for a request."""


def make_server(run_dirs: Sequence[Path | str], port: int, *, results: Path | None = None) -> PageServer:
    """A server of the page of these runs, which listens already; ``port`` 0 takes any free one.

    Raises:
        UsageError: as :func:`.page.write_report`; or the port is taken.
    """
    data = gather([Path(folder) for folder in run_dirs], results, None)
    try:
        return PageServer(data, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot listen on {ADDRESS}:{port}: {reason}; give another port with --port, or --port 0 for "
            "any free one"
        ) from None
