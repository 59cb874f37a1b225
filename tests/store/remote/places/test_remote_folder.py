"""Locations against a real server, directly and through a proxy that breaks things."""

import _thread
import hashlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from saecache.store import CorruptCacheError, UsageError
from saecache.store.remote import RemoteFolder, is_url, open_remote_folder
from saecache.store.remote.places.bucket import wait_for_answers
from saecache.store.remote.places.failures import AccessError, MissingObjectError, RemoteError
from saecache.store.remote.places.file_blocks import HashedParts, part_size
from saecache.store.remote.places.urls import redact_url

from ....killing import DEADLINE_SECONDS
from ..proxy import Answer, Proxy
from ..server import BUCKET, READER_KEY, READER_SECRET, SECRET_KEY

Open = Callable[[str], RemoteFolder]
CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LARGE = os.urandom(part_size(0) * 2 + 12345)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["s3", "file", "memory"])
def anywhere(request: pytest.FixtureRequest, team: str, tmp_path: Path) -> RemoteFolder:
    urls = {"s3": team, "file": f"file://{tmp_path}/new/folder", "memory": f"memory://b/{tmp_path.name}"}
    return open_remote_folder(urls[request.param])


def test_every_store_does_the_same(anywhere: RemoteFolder, file: Path, tmp_path: Path) -> None:
    assert list(anywhere.objects()) == []
    assert anywhere.head("a/x") is None
    with pytest.raises(MissingObjectError):
        anywhere.get("a/x", 10)
    moved: list[int] = []
    info = anywhere.upload(file, "a/x", size=len(CONTENT), sha256=SHA256, on_bytes=moved.append)
    assert (info.key, info.size, sum(moved)) == ("a/x", len(CONTENT), len(CONTENT))
    assert info.sha256 in (SHA256, None)
    assert anywhere.put("a b/ü%", b"small")
    assert anywhere.put("once", b"1", create=True)
    assert not anywhere.put("once", b"2", create=True)
    assert anywhere.get("once", 1) == b"1"
    assert anywhere.get("a b/ü%", 10) == b"small"
    assert {o.key: o.size for o in anywhere.objects()} == {"a/x": len(CONTENT), "a b/ü%": 5, "once": 1}
    assert [o.key for o in anywhere.child("a").objects()] == ["x"]
    folders, objects = anywhere.folders()
    assert (folders, [o.key for o in objects]) == (["a", "a b"], ["once"])
    assert anywhere.child("a").get("x", len(CONTENT)) == CONTENT
    moved.clear()
    anywhere.download("a/x", tmp_path / "back", size=len(CONTENT), sha256=SHA256, on_bytes=moved.append)
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert sum(moved) == len(CONTENT)
    assert anywhere.checksum("a/x", size=len(CONTENT)) == SHA256
    anywhere.delete(["a/x", "once", "never/there"])
    assert [o.key for o in anywhere.objects()] == ["a b/ü%"]


def test_many_parts(location: RemoteFolder, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    sha256 = hashlib.sha256(LARGE).hexdigest()
    info = location.upload(path, "large", size=len(LARGE), sha256=sha256)
    parts = HashedParts(path, len(LARGE), sha256)
    assert b"".join(parts) == LARGE
    assert info.etag == parts.etag()
    assert info.etag.endswith("-3")
    assert info.sha256 == sha256
    location.download("large", tmp_path / "back", size=len(LARGE), sha256=sha256)
    assert (tmp_path / "back").read_bytes() == LARGE


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "many parts"])
def test_a_damaged_file_is_not_uploaded(location: RemoteFolder, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptCacheError, match="damaged"):
        location.upload(path, "x", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CorruptCacheError, match="cannot be read"):
        location.upload(tmp_path / "absent", "x", size=3, sha256=SHA256)
    assert list(location.objects()) == []


TRANSIENT_READS = {
    "500 burst": {"kind": "status", "status": 500, "times": 3},
    "503 burst": {"kind": "status", "status": 503, "code": "SlowDown", "times": 3},
    "reset in the body": {"kind": "reset", "after": 100_000, "times": 2},
    "reset before the body": {"kind": "lost_answer", "times": 2},
    "truncated": {"kind": "truncate", "after": 200_000, "times": 2},
    "short, as far as HTTP can tell": {"kind": "short", "after": 200_000, "times": 2},
    "stall": {"kind": "stall", "after": 150_000},
    "one flipped byte": {"kind": "flip", "after": 123_456, "times": 2},
    "wrong ETag": {"kind": "etag", "times": 2},
}


@pytest.mark.parametrize("fault", TRANSIENT_READS.values(), ids=TRANSIENT_READS)
def test_reads_survive(
    location: RemoteFolder,
    proxy: Proxy,
    open_patiently: Open,
    team: str,
    file: Path,
    tmp_path: Path,
    fault: dict,
) -> None:
    location.upload(file, "x", size=len(CONTENT), sha256=SHA256)
    met = proxy.add(method="GET", path="/x", **fault)
    moved: list[int] = []
    through = open_patiently(team)
    through.download("x", tmp_path / "back", size=len(CONTENT), sha256=SHA256, on_bytes=moved.append)
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert met.met > 0
    assert sum(moved) == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["file", "back"] or len(
        list(tmp_path.iterdir())
    ) == 2


TRANSIENT_WRITES = {
    "500 burst": {"kind": "status", "status": 500, "times": 3},
    "503 burst": {"kind": "status", "status": 503, "code": "SlowDown", "times": 3},
    "answer lost": {"kind": "lost_answer", "times": 2},
    "one flipped byte": {"kind": "flip_request", "after": 123_456, "times": 2},
    "wrong ETag": {"kind": "etag", "times": 2},
}


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "many parts"])
@pytest.mark.parametrize("fault", TRANSIENT_WRITES.values(), ids=TRANSIENT_WRITES)
def test_writes_survive(
    location: RemoteFolder,
    proxy: Proxy,
    open_quickly: Open,
    team: str,
    tmp_path: Path,
    fault: dict,
    content: bytes,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    met = proxy.add(method="PUT", path="/x", **fault)
    moved: list[int] = []
    sha256 = hashlib.sha256(content).hexdigest()
    open_quickly(team).upload(path, "x", size=len(content), sha256=sha256, on_bytes=moved.append)
    assert met.met > 0
    assert sum(moved) == len(content)
    assert location.checksum("x", size=len(content)) == sha256


def test_bytes_that_stay_wrong_are_an_error(
    location: RemoteFolder, proxy: Proxy, open_quickly: Open, team: str, file: Path, tmp_path: Path
) -> None:
    location.upload(file, "x", size=len(CONTENT), sha256=SHA256)
    proxy.add("flip", method="GET", path="/x", times=100)
    with pytest.raises(CorruptCacheError, match=r"/x is damaged: sha256 is \w+, expected"):
        open_quickly(team).download("x", tmp_path / "back", size=len(CONTENT), sha256=SHA256)
    proxy.clear()
    with pytest.raises(CorruptCacheError, match="300000 bytes, expected 300001"):
        location.download("x", tmp_path / "back", size=len(CONTENT) + 1, sha256=SHA256)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(CorruptCacheError, match="expected at most 10"):
        location.get("x", 10)


ACCESS = {
    "forbidden": ({"status": 403, "code": "AccessDenied"}, "not allowed"),
    "expired": ({"status": 400, "code": "ExpiredToken"}, "have expired"),
    "wrong key": ({"status": 403, "code": "InvalidAccessKeyId"}, "not accepted"),
    "wrong clock": ({"status": 403, "code": "RequestTimeTooSkewed"}, "set the clock"),
    "another region": ({"status": 301, "code": "PermanentRedirect"}, "another region"),
    "a proxy's login": ({"status": 407, "code": "None"}, "the proxy .* wants a login"),
}


@pytest.mark.parametrize(("answer", "words"), ACCESS.values(), ids=ACCESS)
def test_what_no_retry_can_mend_is_said_at_once(
    proxy: Proxy, open_quickly: Open, team: str, file: Path, answer: dict, words: str
) -> None:
    location = open_quickly(team)
    for method, work in {
        "GET": lambda: location.get("x", 10),
        "PUT": lambda: location.upload(file, "x", size=len(CONTENT), sha256=SHA256),
    }.items():
        proxy.clear()
        proxy.add("status", method=method, times=100, **answer)
        with pytest.raises(AccessError, match=words):
            work()
        assert len(proxy.seen) == 1


@pytest.mark.parametrize("status", [101, 304, 409, 600])
def test_answers_that_are_none_pass(proxy: Proxy, open_patiently: Open, team: str, status: int) -> None:
    """Of a proxy, for example; 409 of two who write at once."""
    location = open_patiently(team)
    faults = [proxy.add("status", method=method, status=status) for method in ("PUT", "GET", "POST")]
    location.put("x", b"1")
    location.put("y", b"2")
    location.delete(["x", "y"])
    assert [fault.met for fault in faults] == [1, 1, 1]
    assert location.objects() == []


def test_a_refusal_to_create_while_somebody_else_writes_is_no_other_object(
    proxy: Proxy, open_quickly: Open, team: str
) -> None:
    """S3 may refuse both of two who write at once, and then there is none."""
    proxy.add("status", method="PUT", status=409, code="ConditionalRequestConflict", times=2)
    assert open_quickly(team).put("claim", b"1", create=True)
    assert not open_quickly(team).put("claim", b"2", create=True)


@pytest.mark.parametrize(
    ("key", "code", "kind", "words"),
    [
        ("x", "AccessDenied", AccessError, r"not allowed \(AccessDenied\)"),
        ("x", "SlowDown", RemoteError, r"kept failing \(SlowDown\)"),
        ("of nobody", "AccessDenied", RemoteError, "makes no sense"),  # the library panics
    ],
)
def test_a_refusal_to_remove_one_of_many(
    proxy: Proxy, open_quickly: Open, team: str, key: str, code: str, kind: type[Exception], words: str
) -> None:
    """AWS answers with 200 and says in it which objects it did not remove, and why."""
    prefix = team.partition(f"{BUCKET}/")[2]

    def refuse(method: str, path: str, answer: Answer) -> Answer:
        if method != "POST":
            return answer
        one = f"<Error><Key>{prefix}/{key}</Key><Code>{code}</Code><Message>no</Message></Error>"
        return 200, [("Content-Type", "application/xml")], f"<DeleteResult>{one}</DeleteResult>".encode()

    proxy.rewrite = refuse
    with pytest.raises(kind, match=words):
        open_quickly(team).delete(["x", "y"])
    assert len(proxy.seen) == 1 or kind is RemoteError


def test_a_refused_head_is_no_missing_object(proxy: Proxy, open_quickly: Open, team: str) -> None:
    """The same question by GET, which gives the reason, may find that there is nothing."""
    proxy.add("status", method="HEAD", status=403, times=100)
    with pytest.raises(AccessError, match=r"looking at x at .* not allowed"):
        open_quickly(team).head("x")


def test_wrong_credentials_rights_and_buckets(
    team: str, file: Path, monkeypatch: pytest.MonkeyPatch, open_patiently: Open
) -> None:
    with pytest.raises(AccessError, match="no such bucket"):
        open_patiently("s3://nowhere/x").get("y", 10)
    with pytest.raises(AccessError, match="no such bucket"):
        list(open_patiently("s3://nowhere/x").objects())
    with pytest.raises(AccessError, match="no such bucket"):
        open_patiently("s3://nowhere/x").upload(file, "x", size=len(CONTENT), sha256=SHA256)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(AccessError, match="not accepted") as caught:
        open_patiently(team).get("y", 10)
    assert "not-the-secret" not in str(caught.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert list(open_patiently(team).objects()) == []
    with pytest.raises(AccessError, match="not allowed"):
        open_patiently(team).put("x", b"1")


def test_no_server_is_said_soon(team: str, monkeypatch: pytest.MonkeyPatch, open_quickly: Open) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"no answer from http://127.0.0.1:9 \(check the endpoint"):
        open_quickly(team).get("x", 10)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:hunter2@x@127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"no answer from http://127\.0\.0\.1:9") as caught:
        open_quickly(team).get("x", 10)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_keeps_failing(proxy: Proxy, open_quickly: Open, team: str) -> None:
    proxy.add("status", status=500, times=10_000)
    with pytest.raises(RemoteError, match=r"kept failing \(500 InternalError\); run again later"):
        open_quickly(team).get("x", 10)


def test_nothing_that_is_shown_holds_a_secret(location: RemoteFolder, team: str) -> None:
    shown = repr(location) + str(vars(location)) + repr(location.bucket) + str(vars(location.bucket))
    assert SECRET_KEY not in shown
    assert SECRET_KEY.encode() not in pickle.dumps(location)
    assert pickle.loads(pickle.dumps(location)).url == team


def test_urls() -> None:
    assert is_url("s3://b/x")
    assert is_url("file:///x")
    for path in ("caches/x", "/caches/x", "C:\\caches", "C:/caches", Path("s3://b")):
        assert not is_url(path)
    assert open_remote_folder("memory://b//x///y/").url == "memory://b/x/y"
    for url, words in {
        "s3://": "names no bucket",
        "http://host/x": "set AWS_ENDPOINT_URL",
        "ftp://host/x": "expected one of s3://",
        "s3://b/../x": "'..'",
        "file://x/y": "three slashes",
        "file:///": "names no folder",
        "plain/path": "expected a URL",
    }.items():
        with pytest.raises(UsageError, match=words):
            open_remote_folder(url)
    for url in ("s3://key:hunter2@bucket/x", "s3://b/x?secret=hunter2"):
        with pytest.raises(UsageError, match="come from the environment") as caught:
            open_remote_folder(url)
        assert "hunter2" not in str(caught.value)


UGLY = [
    "s3://key:hunter2@bucket/x",
    "s3:/key:hunter2@bucket/x",
    "s3://key:hunter2/with/slashes@bucket/x",
    "s3://key:hunter2@x@bucket/x",
    "s3://key:hunter2#x@bucket/x",
    "s3://bucket/x?X-Amz-Signature=hunter2",
    "s3://bucket/x#hunter2",
    "s3://[hunter2@/x",
    "S3://key:hunter2@bucket",
    "https://key:hunter2@host/x",
    "az:/key:hunter2@container/x",
    "file://key:hunter2@host/x",
    "//key:hunter2@bucket/x",
]


@pytest.mark.parametrize("url", UGLY)
def test_no_url_is_quoted_that_may_hold_a_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote_folder(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("https://minio.example.com/path?x=hunter2", "https://minio.example.com"),
        ("http://someone:hunter2@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://someone:hunter2@secret@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://someone:hunter2/x@127.0.0.1:9/y", "http://127.0.0.1:9"),
        ("http://someone:hunter2#x@[::1]:9", "http://[::1]:9"),
        ("http://someone:hunter2@", ""),
        ("hunter2", ""),
        ("", ""),
    ],
)
def test_of_an_endpoint_only_the_host_is_shown(endpoint: str, shown: str) -> None:
    assert redact_url(endpoint) == shown


@pytest.mark.parametrize(
    "endpoint",
    [
        "minio:9000",
        "ftp://host",
        "http://host:99999",
        "http://host:0x1",
        "http://a b",
        "http://x:hunter2/@host:9",
    ],
)
def test_endpoints_that_make_no_sense(team: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The library panics at some of them, which is no exception that anybody catches."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match=r"not a valid .*check AWS_ENDPOINT_URL") as caught:
        open_remote_folder(team)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["a b", "a\tb", "a%20b", "-a"])
def test_names_that_no_bucket_has(bucket: str) -> None:
    with pytest.raises(UsageError):
        open_remote_folder(f"s3://{bucket}/x")


def test_claims_of_a_folder_that_is_there_keep_their_name(tmp_path: Path) -> None:
    """The dot of ``.unfinished.json`` was lost where the folder existed before it was opened."""
    open_remote_folder(tmp_path.as_uri()).put(".unfinished.json", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished.json"]


@pytest.mark.parametrize("create", [True, False])
def test_small_objects_that_arrive_damaged_are_written_again(
    location: RemoteFolder, proxy: Proxy, open_quickly: Open, team: str, create: bool
) -> None:
    met = proxy.add("flip_request", method="PUT", path="/claim", after=3)
    assert open_quickly(team).put("claim", b"the content of a claim", create=create)
    assert met.met == 1
    assert location.get("claim", 100) == b"the content of a claim"


@pytest.mark.parametrize("name", ["plain", "a b", "100%", "%41", "ü+&=,;", "x@y"])
def test_names_mean_what_they_say(team: str, tmp_path: Path, name: str) -> None:
    for url in (f"{team}/{name}", (tmp_path / name).as_uri(), f"memory://{tmp_path.name}/{name}"):
        first = open_remote_folder(url)
        assert first.put("x", url.encode())
        again = pickle.loads(pickle.dumps(first))
        assert again.url == first.url
        assert again.get("x", 1000) == url.encode()
        assert [info.key for info in again.objects()] == ["x"]
    assert (tmp_path / name / "x").is_file()
    assert name in open_remote_folder(team).folders()[0]


def test_a_whole_bucket(tmp_path: Path) -> None:
    bucket = open_remote_folder(f"memory://{tmp_path.name}")
    assert bucket.put("a/b", b"1")
    assert bucket.folders() == (["a"], [])
    assert bucket.child("a").get("b", 1) == b"1"
    assert [info.key for info in bucket.objects()] == ["a/b"]


def test_the_bucket_is_only_written_below_the_prefix(location: RemoteFolder, file: Path, team: str) -> None:
    location.child("a").upload(file, "x", size=len(CONTENT), sha256=SHA256)
    whole = open_remote_folder(f"s3://{BUCKET}")
    assert whole.head(f"{team.rsplit('/', 1)[1]}/a/x") is not None


def test_the_end_of_a_process_waits_for_threads_that_hand_over_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fourth `cache rm` ended with SIGABRT against a server that answers fast."""
    # The test runner has a thread of this sort as well, which never ends.
    ours = [SimpleNamespace(ident=number) for number in sys._current_frames()]
    monkeypatch.setattr(threading, "enumerate", lambda: ours)
    started, done = threading.Event(), []

    def foreign_thread() -> None:
        started.set()
        time.sleep(0.3)
        done.append(True)

    _thread.start_new_thread(foreign_thread, ())  # threading does not know of it
    started.wait()
    began = time.monotonic()
    wait_for_answers(DEADLINE_SECONDS)
    assert done == [True]
    assert time.monotonic() - began < DEADLINE_SECONDS, "it waited for the thread, and not for the deadline"


def test_the_end_of_a_process_does_not_wait_for_ever() -> None:
    stop = threading.Event()
    _thread.start_new_thread(stop.wait, ())
    wait_for_answers(0.05)
    assert not stop.is_set()
    stop.set()
