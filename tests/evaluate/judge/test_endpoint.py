"""The client against a server that is slow, busy, broken or hostile."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.judge import endpoint as module
from saecache.evaluate.judge.address import check_url, is_local
from saecache.evaluate.judge.chat import extract_text
from saecache.evaluate.judge.config import EndpointConfig
from saecache.evaluate.judge.endpoint import Endpoint
from saecache.evaluate.judge.failures import EndpointError, RefusedRequestError, Stopped
from saecache.evaluate.judge.pacing import Pace

from ...killing import DEADLINE_SECONDS
from .judge_server import (
    MODEL,
    Handler,
    Judge,
    Request,
    content,
    cut_body,
    dripping,
    dripping_head,
    hang_up,
    promising,
    serve,
    slow,
    status,
)

BODY = {
    "model": MODEL,
    "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Excerpt 1: a <<b>>"}],
}
Connect = Callable[..., Endpoint]


@pytest.fixture
def connect(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """``connect(key=..., **settings)`` is a client of the judge, whose pauses are short."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.001)
    made = []

    def client(key: str | None = None, url: str | None = None, **settings: Any) -> Endpoint:
        if key is not None:
            monkeypatch.setenv("SAECACHE_JUDGE_KEY", key)
        config = EndpointConfig(**({"patience_seconds": DEADLINE_SECONDS} | settings))
        made.append(Endpoint(url or judge.url, "SAECACHE_JUDGE_KEY", config))
        return made[-1]

    yield client
    for one in made:
        one.close()


def ask(client: Endpoint) -> str:
    return str(client.post("/chat/completions", BODY, 10, extract_text)["text"])


@pytest.mark.parametrize(
    "faults",
    [
        [status(500)], [status(502), status(503), status(504)], [status(429)], [cut_body], [hang_up, hang_up],
        [content(b"<html>wait</html>")], [content({"object": "error"}), content(b"")], [content([])],
        [content(b'{"choices": [' + b"[" * 100_000)], [status(429, Retry_After="0.01")],
        [status(503, Retry_After="soon")], [hang_up, status(500), cut_body, status(529)],
    ],
    ids=[
        "500", "gateways", "busy", "cut", "hung up", "HTML", "wrong JSON", "a list", "deep JSON", "come back",
        "no date", "a mix",
    ],
)  # fmt: skip
def test_what_may_pass_is_asked_again(connect: Connect, judge: Judge, faults) -> None:
    judge.faults = list(faults)
    assert "EXPLANATION: one of" in ask(connect())
    assert len(judge.posts) == len(faults) + 1
    assert all(request.body == judge.posts[0].body for request in judge.posts)


@pytest.mark.parametrize("code", [500, 429])
def test_patience_ends(connect: Connect, judge: Judge, code: int) -> None:
    judge.always = status(code, "come back never")
    with pytest.raises(
        EndpointError, match=rf"failed 4 times.*status {code} \(come back never\).*max_retries=3.*stored"
    ):
        ask(connect(max_retries=3))
    assert len(judge.posts) == 4


def test_a_silent_server_is_given_up(connect: Connect, judge: Judge) -> None:
    judge.always = slow(DEADLINE_SECONDS)
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"failed 2 times.*no whole answer in 0.3 s"):
        ask(connect(timeout_seconds=0.3, max_retries=1))
    assert time.monotonic() - began < DEADLINE_SECONDS


@pytest.mark.parametrize("endless", [dripping, dripping_head, promising])
def test_an_answer_without_end_is_given_up(
    connect: Connect, judge: Judge, endless: Callable[[Handler, Request], bool]
) -> None:
    judge.always = endless
    with pytest.raises(EndpointError, match=r"no whole answer in 3 s"):
        ask(connect(timeout_seconds=3, max_retries=0))


def test_a_body_that_is_too_large_is_refused(
    connect: Connect, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1 << 20)
    judge.always = content(b" " * (3 << 20))
    with pytest.raises(EndpointError, match=r"an answer of more than 1 MiB"):
        ask(connect(max_retries=0))


def test_a_pause_that_is_asked_for_is_kept(connect: Connect, judge: Judge) -> None:
    judge.faults = [status(429, Retry_After="1")]
    ask(connect())
    first, second = judge.posts
    assert second.seconds - first.seconds > 0.99


def test_a_pause_may_be_a_date(connect: Connect, judge: Judge) -> None:
    def in_three_seconds(handler: Handler, request: Request) -> bool:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        return status(503, Retry_After=date)(handler, request)

    judge.faults = [in_three_seconds]
    ask(connect())
    first, second = judge.posts
    assert second.seconds - first.seconds > 0.9


def test_all_threads_keep_the_pause(connect: Connect, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(concurrency=4)
    judge.faults = [status(429, Retry_After="1")]
    ask(client)
    began = judge.posts[0].seconds
    threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
    pace, paused = client._pace, threading.Event()
    pause = pace.pause

    def note(seconds: float) -> None:
        pause(seconds)
        paused.set()

    monkeypatch.setattr(pace, "pause", note)
    judge.faults = [status(429, Retry_After="1")]
    threads[0].start()
    assert paused.wait(DEADLINE_SECONDS)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    refused = judge.posts[2].seconds
    assert refused > began
    assert all(request.seconds - refused > 0.9 for request in judge.posts[3:])
    assert len(judge.posts) == 6


def test_a_pause_longer_than_the_patience_is_not_begun(connect: Connect, judge: Judge) -> None:
    judge.always = status(429, Retry_After="3600")
    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"asks to wait 3600 s.*patience_seconds=20"):
        ask(connect(patience_seconds=20.0))
    assert time.monotonic() - began < DEADLINE_SECONDS and len(judge.posts) == 1


@pytest.mark.parametrize("written", ["-5", "nan", "inf", "1e400", "Wed, 99 Foo", "", "\u00e9"])
def test_hostile_pauses_are_harmless(written: str) -> None:
    found = module._retry_after({"retry-after": written})
    assert found is None or 0 <= found <= 1e9


def test_no_answer_of_the_right_form_is_a_refusal_of_this_call_only(connect: Connect, judge: Judge) -> None:
    judge.always = content({"choices": "none"})
    with pytest.raises(RefusedRequestError, match="no chat completion"):
        ask(connect(max_repairs=2))
    assert len(judge.posts) == 3


@pytest.mark.parametrize("code", [400, 402, 413, 422, 418])
def test_a_refused_request_is_not_repeated(connect: Connect, judge: Judge, code: int) -> None:
    judge.always = status(code, "too long")
    with pytest.raises(RefusedRequestError, match=rf"status {code} \(too long\)"):
        ask(connect())
    assert len(judge.posts) == 1


def test_a_wrong_key_is_said_without_showing_it(connect: Connect, judge: Judge) -> None:
    judge.always = status(401, "Incorrect API key provided: sk-secret-123. Bearer sk-secret-123")
    with pytest.raises(EndpointError) as caught:
        ask(connect(key="sk-secret-123"))
    assert "sk-secret-123" not in str(caught.value)
    assert "is the key in SAECACHE_JUDGE_KEY right?" in str(caught.value)
    with pytest.raises(EndpointError, match=r"set the environment variable SAECACHE_JUDGE_KEY"):
        ask(connect(key=""))
    assert len(judge.posts) == 2
    assert "Authorization" in judge.posts[0].headers and "Authorization" not in judge.posts[1].headers


def test_a_key_that_is_no_key_is_refused_without_showing_it(connect: Connect) -> None:
    for key in ("two words", "line\nbreak", "sch\u00f6n", "tab\tbed"):
        with pytest.raises(UsageError, match="holds no API key") as caught:
            connect(key=key)
        assert key not in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_do_not_carry_the_key(connect: Connect, judge: Judge, code: int) -> None:
    """Neither to another server nor to another path of the same one."""
    with serve(Judge()) as thief:
        for target in (f"{thief.url}/chat/completions?key=1", "/elsewhere"):
            judge.always = status(code, Location=target)
            with pytest.raises(EndpointError, match=r"redirects to .*give the final address") as caught:
                ask(connect(key="sk-secret"))
            assert "key=1" not in str(caught.value)
        assert thief.requests == []


def test_a_redirect_to_nonsense_is_said(connect: Connect, judge: Judge) -> None:
    judge.always = status(302, Location="http://[half")
    with pytest.raises(EndpointError, match="redirects to no valid address"):
        ask(connect())


def test_a_pause_of_nothing_is_no_hurry(
    connect: Connect, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.4)
    judge.faults = [status(429, Retry_After="0")]
    ask(client)
    first, second = judge.posts
    assert second.seconds - first.seconds > 0.19


def test_an_unknown_address_is_said(connect: Connect, judge: Judge) -> None:
    judge.always = status(404, "The model `x` does not exist")
    with pytest.raises(EndpointError, match=r"does not know the address or the model.*does not exist.*/v1"):
        ask(connect())


def test_the_check_before_the_work(connect: Connect, judge: Judge) -> None:
    client = connect()
    client.check(MODEL, look_for_model=True)
    judge.models = [f"model-{i}" for i in range(50)]
    with pytest.raises(
        UsageError, match=r"no model 'modl-7' \(did you mean 'model-7'.*model-9, \.\.\.\. Correct"
    ):
        client.check("modl-7", look_for_model=True)
    client.check("modl-7", look_for_model=False)
    judge.models = None
    client.check("anything", look_for_model=True)


def test_words_of_a_server_are_one_short_printable_line(connect: Connect, judge: Judge) -> None:
    judge.always = status(400, "\x1b[2J" + "a\nb" * 10_000)
    with pytest.raises(RefusedRequestError) as caught:
        ask(connect())
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_a_stop_ends_pauses(judge: Judge) -> None:
    stop = threading.Event()
    judge.always = status(500)
    client = Endpoint(judge.url, None, EndpointConfig(), stop)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped):
        ask(client)
    client.close()


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host:8000", "", "http://", "http://[::1", "http://h:0/v1", "file:///etc"]
)
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(UsageError, match="no http or https URL"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://me:pass-word@host/v1", "https://host/v1?key=pass-word", "https://host/#pass-word"]
)
def test_secrets_in_a_url_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(UsageError, match="key_variable") as caught:
        check_url(url)
    assert "pass-word" not in str(caught.value)


def test_urls_that_people_paste() -> None:
    assert check_url("http://h/v1/") == check_url("http://h/v1/chat/completions") == "http://h/v1"
    assert is_local("http://127.0.0.1:1/v1") and is_local("http://[::1]:1") and is_local("http://localhost")
    assert not is_local("http://10.0.0.1") and not is_local("https://api.example.com")


def test_a_key_in_the_clear_is_noticed(connect: Connect) -> None:
    assert connect(key="k", url="http://gpu7:8000/v1").sends_key_in_the_clear
    assert not connect(key="k", url="https://gpu7:8000/v1").sends_key_in_the_clear
    assert not connect(key="k").sends_key_in_the_clear
    assert not connect(key="", url="http://gpu7:8000/v1").sends_key_in_the_clear


def test_a_proxy_is_not_asked_about_this_machine(
    connect: Connect, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "EXPLANATION" in ask(connect())


def test_pauses_grow_and_are_a_function_of_the_request() -> None:
    def pauses(seed: bytes) -> list[float]:
        return [module._backoff(seed, attempt) for attempt in range(12)]

    first, other = pauses(b"a"), pauses(b"b")
    assert first == pauses(b"a") != other
    for attempt, pause in enumerate(first):
        longest = min(0.5 * 2**attempt, 30)
        assert longest / 2 <= pause <= longest


# ---- pacing, by a clock that a test holds


class PretendTime:
    def __init__(self) -> None:
        self.now = 100.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("requests", "tokens", "per_call", "seconds"),
    [
        (60, None, 5, 1.0),
        (None, 600, 20, 2.0),
        (120, 600, 20, 2.0),
        (30, 6000, 20, 2.0),
        (None, None, 9, 0.0),
    ],
)
def test_no_minute_has_more_than_allowed(
    requests: int | None, tokens: int | None, per_call: int, seconds: float
) -> None:
    moment = PretendTime()
    pace = Pace(requests, tokens, clock=lambda: moment.now, wait=moment.wait)
    begun = []
    for _ in range(10):
        pace.admit(per_call)
        begun.append(moment.now)
    assert [b - a for a, b in pairwise(begun)] == pytest.approx([seconds] * 9)


def test_requests_reach_the_server_at_the_pace_that_is_set(connect: Connect, judge: Judge) -> None:
    client = connect(requests_per_minute=300, concurrency=4)
    threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(judge.posts) == 4 and judge.posts[-1].seconds - began > 3 * 0.2


def test_a_pause_holds_back_what_comes_after() -> None:
    moment = PretendTime()
    pace = Pace(clock=lambda: moment.now, wait=moment.wait)
    pace.pause(7)
    pace.admit(1)
    assert moment.now == 107


def test_concurrency_is_bounded_and_used() -> None:
    judge = Judge(delay=0.05)
    with serve(judge):
        client = Endpoint(judge.url, None, EndpointConfig(concurrency=3))
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
    assert len(judge.posts) == 9 and judge.most_at_once <= 3
