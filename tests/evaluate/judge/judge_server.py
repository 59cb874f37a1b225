"""A real HTTP server that behaves like a judge, and misbehaves where a test asks for it.

It reads: an explanation lists the tokens that are highlighted most often in the excerpts, and an excerpt is
marked 1 if one of the explanation's tokens is in it. So true explanations of latents that respond to tokens
score high, and explanations of other latents score at chance.

``python judge_server.py PORT_FILE LOG_FILE SECONDS`` runs it as a process that takes so long for each answer.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "reader-1"
EMBEDDING_WIDTH = 48
_EXCERPT = re.compile(r"^Excerpt \d+: (.*)$", re.MULTILINE)
_MARKED = re.compile(r"<<(.+?)>>")


@dataclass
class Request:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][1]["content"])

    @property
    def asks_for_explanation(self) -> bool:
        return "Explanation:" not in self.prompt


Fault = Callable[["Handler", Request], bool]
"""Answers a request wrongly; False if it leaves the request to the judge."""


@dataclass
class Judge:
    """The server's state. ``faults`` are taken one by one, by the next requests; ``always`` by every one.

    ``explain`` and ``mark`` are the rule; a test may put another one in its place.
    """

    models: list[str] | None = field(default_factory=lambda: [MODEL])
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    delay: float = 0.0
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    most_at_once: int = 0
    now: int = 0
    url: str = ""
    explain: Callable[[str], str] = lambda prompt: explain(prompt)
    mark: Callable[[str], str] = lambda prompt: mark(prompt)

    @property
    def posts(self) -> list[Request]:
        """Requests that ask for an answer."""
        return [request for request in self.requests if request.body]


def explain(prompt: str) -> str:
    """The highlighted tokens that are at least half as frequent as the most frequent one, as a list that
    :func:`mark` can read.
    """
    found = Counter(
        word.strip() or word for text in _EXCERPT.findall(prompt) for word in _MARKED.findall(text)
    )
    most = max(found.values(), default=0)
    words = [word for word, count in found.most_common(12) if 2 * count >= most]
    return f"I look at the marks first.\nEXPLANATION: one of {json.dumps(words)}"


def mark(prompt: str) -> str:
    """1 for every excerpt in which, marked or not, one of the explanation's tokens is."""
    listed = re.search(r"^Explanation: one of (\[.*\])$", prompt, re.MULTILINE)
    words = json.loads(listed[1]) if listed else []
    marks = []
    for text in _EXCERPT.findall(prompt):
        marked = _MARKED.findall(text)
        places = marked if marked else [text]
        marks.append(int(any(_occurs(word, place) for word in words for place in places)))
    return f"<think>[1, 0]</think>{marks}"


def _occurs(word: str, place: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", place) is not None


def embed(text: str) -> list[float]:
    """A bag of words, so that equal explanations are equal and others are not."""
    vector = [0.0] * EMBEDDING_WIDTH
    for word in text.split():
        vector[hashlib.sha256(word.encode()).digest()[0] % EMBEDDING_WIDTH] += 1.0
    return vector


class Handler(BaseHTTPRequestHandler):
    """Answers as OpenAI's API does."""

    judge: Judge
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note({})
        if self.judge.models is None:
            self.answer(404, {"error": {"message": "no such path"}})
        else:
            self.answer(200, {"object": "list", "data": [{"id": name} for name in self.judge.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        judge = self.judge
        request = self._note(body)
        with judge.lock:
            judge.now += 1
            judge.most_at_once = max(judge.most_at_once, judge.now)
            fault = judge.faults.pop(0) if judge.faults else judge.always
        try:
            time.sleep(judge.delay)
            if fault is None or not fault(self, request):
                self.reply(request)
        finally:
            with judge.lock:
                judge.now -= 1

    def _note(self, body: dict[str, Any]) -> Request:
        request = Request(self.path, dict(self.headers), body, time.monotonic())
        with self.judge.lock:
            self.judge.requests.append(request)
        return request

    def reply(self, request: Request) -> None:
        if self.path.endswith("/embeddings"):
            data = [{"index": i, "embedding": embed(text)} for i, text in enumerate(request.body["input"])]
            self.answer(200, {"object": "list", "data": data[::-1]})
        else:
            rule = self.judge.explain if request.asks_for_explanation else self.judge.mark
            self.say(rule(request.prompt))

    def say(self, text: str | None, finish_reason: str = "stop") -> None:
        message = {"role": "assistant", "content": text}
        self.answer(200, {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})

    def answer(
        self, status: int, document: Any, headers: dict[str, str] | None = None, *, lacks: int = 0
    ) -> None:
        """Send a document, JSON unless it is bytes; the last ``lacks`` bytes never come."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - lacks])
        if lacks:
            self.close_connection = True

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # the client gave up, as it should
            super().handle()

    def log_message(self, *_arguments: object) -> None:
        pass


# ---- ways to misbehave


def status(code: int, message: str = "not now", **headers: str) -> Fault:
    """Answer with a status, and with headers whose names have _ for -."""

    def fault(handler: Handler, _request: Request) -> bool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.answer(code, {"error": {"message": message}}, named)
        return True

    return fault


def content(document: Any) -> Fault:
    """Answer with another document than a chat completion."""

    def fault(handler: Handler, _request: Request) -> bool:
        handler.answer(200, document)
        return True

    return fault


def saying(text: str | None, finish_reason: str = "stop") -> Fault:
    """Answer with a text of one's own."""

    def fault(handler: Handler, _request: Request) -> bool:
        handler.say(text, finish_reason)
        return True

    return fault


def cut_body(handler: Handler, _request: Request) -> bool:
    """End the connection before the body does."""
    handler.answer(200, {"choices": [{"message": {"content": "x" * 200}}]}, lacks=50)
    return True


def hang_up(handler: Handler, _request: Request) -> bool:
    """End the connection without a word."""
    handler.close_connection = True
    handler.connection.close()
    return True


def slow(seconds: float) -> Fault:
    """Take so long, then answer rightly."""

    def fault(_handler: Handler, _request: Request) -> bool:
        time.sleep(seconds)
        return False

    return fault


def dripping(handler: Handler, _request: Request) -> bool:
    """Send a body without an end, one byte at a time."""
    return _go_on(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ")


def dripping_head(handler: Handler, _request: Request) -> bool:
    """Send a head without an end, one byte at a time."""
    return _go_on(handler, b"HTTP/1.1 200 OK\r\nX-Long: ", b"a")


def promising(handler: Handler, _request: Request) -> bool:
    """Say "100 Continue", as gateways do to keep a line open, without end."""
    return _go_on(handler, b"", b"HTTP/1.1 100 Continue\r\n\r\n")


def _go_on(handler: Handler, start: bytes, piece: bytes) -> bool:
    handler.wfile.write(start)
    for _ in range(1000):
        handler.wfile.write(piece)
        handler.wfile.flush()
        time.sleep(0.05)
    return True


class _Server(ThreadingHTTPServer):
    request_queue_size = 64


@contextmanager
def serve(judge: Judge) -> Iterator[Judge]:
    """Run a judge on a free port of this machine; ``judge.url`` is its base."""
    handler = type("OneJudge", (Handler,), {"judge": judge})
    with _Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        judge.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def main(port_file: Path, log_file: Path, seconds: float) -> None:
    """Serve until killed, and log the hash of every request for an answer."""
    judge = Judge(delay=seconds)

    def log(_handler: Handler, request: Request) -> bool:
        digest = hashlib.sha256(json.dumps(request.body, sort_keys=True).encode()).hexdigest()
        with judge.lock, log_file.open("a") as file:
            file.write(f"{digest}\n")
        return False

    judge.always = log
    with serve(judge):
        temporary = port_file.with_suffix(".tmp")
        temporary.write_text(judge.url)
        temporary.replace(port_file)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
