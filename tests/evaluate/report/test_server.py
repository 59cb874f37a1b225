"""``saecache browse``: it serves the page and the parts to this machine, and nothing else to anybody."""

import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.report.server import PageServer, make_server
from tests.killing import DEADLINE_SECONDS

from .browser import CHROMIUM, Page
from .test_page import unpacked


@pytest.fixture
def measured(run_dir, cache, unembedding) -> Path:
    run([run_dir], cache, unembedding=unembedding, decode_token="<{}>".format, show_progress=False)
    return run_dir


@pytest.fixture
def server(measured) -> Iterator[PageServer]:
    with make_server([measured], 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: PageServer, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_parts_are_those_of_the_report(server, measured) -> None:
    status, page = ask(server, "/")
    assert status == 200
    assert b"connect-src &#39;self&#39;" in page or b"connect-src 'self'" in page
    assert b"data-part" not in page.replace(b'script[data-part="${name}"]', b"")
    assert ask(server, "/?x=1") == (status, page)
    assert ask(server, "/", "HEAD") == (200, b"")
    for name in ("index", "contexts", "text", "block-0", "block-1"):
        status, content = ask(server, f"/parts/2/{name}")
        assert (status, content) == (200, server.data.latents[2].read(name))
        assert unpacked(content)


@pytest.mark.parametrize(
    "path",
    [
        "/parts/3/index", "/parts/0/block-2", "/parts/0/block-", "/parts/0/block-99999999999", "/parts/0/x",
        "/parts/0/../../results.json", "/../../../etc/passwd", "/results.json", "/parts/-1/index",

        "/parts/0/index/", "/parts/%d9%a0/index", "/%2e%2e/x", "/parts/0/read",
        "/index.html",
        "/parts/0/names", "/parts/0/__class__",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_other_hosts_methods_and_half_requests(server) -> None:
    port = server.server_address[1]
    assert ask(server, "/", host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        assert ask(server, "/", host=host)[0] == 403
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501
    assert server.server_address[0] == "127.0.0.1"
    with (
        socket.create_connection(server.server_address) as half,
        socket.create_connection(server.server_address) as odd,
    ):
        half.sendall(b"GET / HT")
        odd.sendall(b"\x00\xff\r\n\r\n")
        assert ask(server, "/parts/0/index")[0] == 200  # one that says nothing more keeps nobody waiting


def test_a_browser_that_leaves_early_gives_no_stack_trace(server, capsys) -> None:
    connection = socket.create_connection(server.server_address)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: half of")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no end
    connection.close()
    assert ask(server, "/parts/0/index")[0] == 200
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(DEADLINE_SECONDS)
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken(server, measured) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1:.*give another port with --port"):
        make_server([measured], server.server_address[1])


def test_a_results_file_may_stand_for_its_folder(measured) -> None:
    with make_server([measured / "results.json"], 0) as server:
        assert len(server.data.entries) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_the_command_says_where_and_ends_by_ctrl_c(measured) -> None:
    command = [sys.executable, "-m", "saecache", "browse", str(measured), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/ shows .*open it in a browser; Ctrl-C ends", line)
        assert found, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
        connection.request("GET", "/parts/0/index")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, output, errors) == (0, "", "ended\n")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_a_browser_reads_blocks_as_it_scrolls(server, tmp_path, monkeypatch) -> None:
    asked: list[str] = []
    find = PageServer.find

    def noted(self: PageServer, path: str) -> tuple[str, bytes] | None:
        asked.append(path)
        return find(self, path)

    monkeypatch.setattr(PageServer, "find", noted)
    latents = server.data.latents[0].latents
    order = [int(i) for i in np.argsort(-latents.fires, kind="stable")]
    with Page(server.url, tmp_path / "profile") as page:
        page.until("document.documentElement.dataset.opened === 'true'")
        assert page.evaluate("document.querySelector('.card h3').textContent") == f"Latent {order[0]}"
        parts = [path for path in asked if path.startswith("/parts/")]
        assert sorted(parts) == sorted(
            ["/parts/0/index", "/parts/0/text", f"/parts/0/block-{order[0] // 64}"]
        )
        page.evaluate("document.querySelector('.browser .list').focus()")
        page.press("End")
        page.until(f"document.querySelector('.card').dataset.number == '{order[-1]}'")
        other = next(at for at, latent in enumerate(order) if latent // 64 != order[0] // 64)
        page.press("Home")
        for at in range(1, other + 1):
            page.press("ArrowDown")
            page.until(f"document.querySelector('.card').dataset.number == '{order[at]}'")
        assert {path for path in asked if "block" in path} == {"/parts/0/block-0", "/parts/0/block-1"}
        assert not any("contexts" in path for path in asked)  # which only a search needs
        assert len([path for path in asked if "block-0" in path]) == 1  # what was read is kept
        page.evaluate("""(() => { const search = document.querySelector("input[type=search]");
            search.value = "<7>"; search.dispatchEvent(new Event("input")); })()""")
        page.until("!document.querySelector('.tools [aria-live]').textContent.startsWith('96 of')")
        assert "/parts/0/contexts" in asked
        assert page.console == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_the_page_says_what_it_cannot_read(server, tmp_path) -> None:
    with Page(server.url, tmp_path / "profile") as page:
        page.until("document.documentElement.dataset.opened === 'true'")
        server.data.latents[0] = None  # as if it served another run
        page.evaluate("""(() => { const search = document.querySelector("input[type=search]");
            search.value = "7"; search.dispatchEvent(new Event("input")); })()""")
        page.until("document.querySelector('.card').innerText.includes('could not be read')")
