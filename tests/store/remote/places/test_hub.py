"""The Hugging Face Hub as a place for caches, against a local server (``hub_server.py``)."""

import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from saecache.store import open_cache
from saecache.store.manifest_file import load_manifest
from saecache.store.remote import open_remote_folder
from saecache.store.remote.cache_objects import UNFINISHED, read_root
from saecache.store.remote.delivery import BucketDelivery
from saecache.store.remote.places.failures import AccessError, RemoteError
from saecache.store.remote.places.remote_folder import RemoteFolder
from saecache.store.remote.places.urls import parse_url
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.team import list_caches
from saecache.store.remote.verify import verify_remote
from saecache.testing.known_rows import cache_bytes

from ....hostile import right_or_refused
from ..conftest import HOOK, PASSING, QUICK
from ..hub_server import READER, SIGNATURE, WRITER, HubServer
from ..proxy import Answer, Proxy, running_proxy

URL = "hf://datasets/team/rows"


@pytest.fixture
def api_proxy(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the tests ask of the Hub goes through it."""
    with running_proxy(hub.url) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        yield proxy


@pytest.fixture
def cdn_proxy(hub: HubServer) -> Iterator[Proxy]:
    """Large files go through it."""
    with running_proxy(hub.cdn) as proxy:
        hub.cdn_shown = proxy.url
        yield proxy


@pytest.fixture
def pushed(hub: HubServer, cache_path: Path) -> HubServer:
    Push(cache_path, URL).run()
    return hub


def repository(hub: HubServer) -> Any:
    return hub.repositories["dataset", "team/rows"]


# ---- URLs


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("hf://datasets/a/b", "datasets/a/b", ""),
        ("hf://datasets/a/b@v1.0/x/y", "datasets/a/b@v1.0", "x/y"),
        ("hf://datasets/a/b@main/x", "datasets/a/b", "x"),
        ("hf://a/b", "a/b", ""),
        ("hf://models/a/b@dev", "a/b@dev", ""),
        ("hf://a/b@refs/pr/3/x", "a/b@refs%2Fpr%2F3", "x"),
        ("hf://a/b@refs%2Fpr%2F3/x", "a/b@refs%2Fpr%2F3", "x"),
    ],
)
def test_urls(url: str, bucket: str, prefix: str) -> None:
    parsed = parse_url(url)
    assert (parsed.scheme, parsed.bucket, parsed.prefix) == ("hf", bucket, prefix)
    assert parse_url(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://datasets/a", "names no repository; expected hf://datasets/ORG/NAME"),
        ("hf://gpt2", "names no repository"),
        ("hf://spaces/a/b", "names a space"),
        ("hf://buckets/a/b", "reached by their S3 protocol"),
        ("hf://datasets/a/b@x%20y/z", "cannot be a revision"),
        ("hf://datasets/a/b@../z", "cannot be a revision|'..'"),
        ("hf://user:secret@datasets/a/b", "credentials"),
        ("hf://datasets/a/b/\ud800", "lone surrogates"),
        ("s3://a/\ud800", "lone surrogates"),
        ("file:///a/\ud800", "lone surrogates"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


# ---- the way there and back


def test_push_makes_a_private_dataset_in_few_commits(pushed: HubServer, cache_path: Path) -> None:
    there = repository(pushed)
    assert there.private
    titles = [title for _, title, _ in there.commits]
    assert titles[0] == "initial commit" and titles[1] == "saecache: .unfinished.json"
    assert titles[-2:] == ["saecache: zarr.json", "saecache: remove 1 files"]  # the manifest, then the claim
    batches = titles[2:-2]
    files = there.files("main")
    expected = {str(p.relative_to(cache_path)): p for p in cache_path.rglob("*") if p.is_file()}
    assert files.keys() - {".gitattributes"} == expected.keys()
    assert len(batches) == -(-(len(expected) - 1) // 64)
    for key, path in expected.items():
        content = path.read_bytes()
        blob = files[key]
        assert (pushed.store[blob.sha256] if blob.sha256 else blob.content) == content
    assert any(blob.sha256 for blob in files.values()) and any(not blob.sha256 for blob in files.values())


def test_pull_is_the_same_bytes(pushed: HubServer, cache_path: Path, tmp_path: Path) -> None:
    Pull(URL, tmp_path / "copy").run()
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


def test_large_files_go_in_the_parts_that_the_hub_names(
    hub: HubServer, cache_path: Path, tmp_path: Path
) -> None:
    hub.multipart_over, hub.chunk_bytes = 2000, 1500
    Push(cache_path, URL).run()
    Pull(URL, tmp_path / "copy").run()
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


def test_a_second_push_moves_nothing(pushed: HubServer, cache_path: Path) -> None:
    commits = len(repository(pushed).commits)
    result = Push(cache_path, URL).run()
    assert (result.moved_objects, result.moved_bytes) == (0, 0)
    assert len(repository(pushed).commits) == commits


def test_the_cache_streams(pushed: HubServer, cache_path: Path) -> None:
    cache, local = open_cache(URL), open_cache(cache_path)
    assert cache.fingerprint == local.fingerprint
    rows = torch.cat(list(cache.batches(HOOK, 64)))
    assert torch.equal(rows, torch.cat(list(local.batches(HOOK, 64))))
    assert np.array_equal(cache.tokens[:], local.tokens[:])


def test_the_commands(pushed: HubServer, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["cache", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert json.loads(run("ls", URL, "--json"))[0]["state"] == "complete"
    assert json.loads(run("info", URL, "--json"))["hooks"].keys() == {HOOK}
    assert "all as written" in run("verify", URL)
    run("pull", URL, str(tmp_path / "copy"))
    assert "removed" in run("rm", URL, "--yes")
    assert repository(pushed).files("main").keys() == {".gitattributes"}
    assert "no caches at" in CliRunner().invoke(app, ["cache", "ls", URL]).output


def test_several_caches_in_one_dataset_beside_its_card(
    hub: HubServer, cache_path: Path, other_cache: Path
) -> None:
    there = hub.make("dataset", "team/rows")
    folder = open_remote_folder(URL)
    assert folder.put("README.md", b"# Rows\n") and folder.objects() == []
    for name, path in (("one", cache_path), ("two", other_cache)):
        Push(path, f"{URL}/{name}").run()
    found = list_caches(URL)
    assert [listed.url for listed in found] == [f"{URL}/one", f"{URL}/two"]
    assert [listed.state for listed in found] == ["complete", "complete"]
    assert found[0].modified is not None
    Removal(f"{URL}/one").run()
    assert [listed.url for listed in list_caches(URL)] == [f"{URL}/two"]
    assert "README.md" in there.files("main")


def test_a_revision_is_another_place(pushed: HubServer, other_cache: Path, tmp_path: Path) -> None:
    there = repository(pushed)
    first = there.branches["main"]
    there.branches["dev"] = there.commits[0][0]
    Push(other_cache, f"{URL}@dev").run()
    assert open_cache(f"{URL}@dev").fingerprint == load_manifest(other_cache).fingerprint
    assert open_cache(URL).fingerprint == open_cache(f"{URL}@{first}").fingerprint
    Removal(URL).run()
    Pull(f"{URL}@{first}", tmp_path / "copy").run()  # a commit stays as it is
    with pytest.raises(AccessError, match=r"no such revision.*check the name after '@'"):
        open_cache(f"{URL}@nowhere")
    with pytest.raises(AccessError, match="not allowed"):
        Push(other_cache, f"{URL}@{there.commits[0][0]}").run()


def test_verify_finds_what_differs(pushed: HubServer) -> None:
    assert verify_remote(URL).ok and verify_remote(URL, quick=True).ok
    large = {path: blob for path, blob in repository(pushed).files("main").items() if blob.sha256}
    path, blob = next(iter(large.items()))
    content = pushed.store[blob.sha256]
    pushed.store[blob.sha256] = bytes([content[0] ^ 1]) + content[1:]
    report = verify_remote(URL, patience=QUICK)
    assert len(report.problems) == 1 and path in report.problems[0]
    with pytest.raises(CorruptCacheError):
        Pull(URL, Path(os.environ["SAECACHE_CACHE_DIR"]) / "copy", patience=QUICK).run()


# ---- interruptions and meetings


def test_an_interrupted_push_continues(hub: HubServer, cache_path: Path, cdn_proxy: Proxy) -> None:
    cdn_proxy.add("status", method="PUT", times=1000, skip=6, status=403)
    with pytest.raises(AccessError):
        Push(cache_path, URL).run()
    arrived = set(hub.store)
    assert len(arrived) >= 6
    with pytest.raises(IncompleteCacheError):
        open_cache(URL)
    assert list_caches(URL)[0].state == "unfinished"
    cdn_proxy.clear()
    Push(cache_path, URL).run()
    sent = [seen.path for seen in cdn_proxy.seen if seen.method == "PUT"]
    assert sent and not any(oid in path for path in sent for oid in arrived)
    assert open_cache(URL).fingerprint == load_manifest(cache_path).fingerprint


def test_another_cache_in_the_place_is_refused(pushed: HubServer, other_cache: Path) -> None:
    with pytest.raises(UsageError, match="holds another cache"):
        Push(other_cache, URL).run()


def test_the_branch_moves_between_look_and_commit(hub: HubServer, api_proxy: Proxy, cache_path: Path) -> None:
    """Somebody commits while the claim is taken: it is looked at again, and taken."""
    there = hub.make("dataset", "team/rows")
    moved = []

    def move(method: str, path: str) -> None:
        if "/commit/" in path and len(moved) < 2:
            moved.append(there.commit("main", f"else {len(moved)}", dict(there.files("main"))))

    api_proxy.before = move
    Push(cache_path, URL, patience=PASSING).run()
    assert len(moved) == 2 and open_cache(URL).fingerprint == load_manifest(cache_path).fingerprint


def test_only_one_of_two_creates(hub: HubServer) -> None:
    folder = open_remote_folder(URL, create=True)
    assert folder.put("claim", b"first", create=True)
    assert not folder.put("claim", b"second", create=True)
    assert folder.get("claim", 100) == b"first"


def test_a_damaged_file_is_not_committed(hub: HubServer, cache_path: Path, tmp_path: Path) -> None:
    folder = open_remote_folder(URL, create=True)
    (tmp_path / "x").write_bytes(b"\0" * 5000)
    with pytest.raises(CorruptCacheError, match="was not uploaded"):
        folder.upload(tmp_path / "x", "x", size=5000, sha256="0" * 64)
    folder.flush()
    assert folder.objects() == []


# ---- faults


API_FAULTS = [
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 503},
    {"kind": "reset", "after": 10},
    {"kind": "truncate", "after": 10},
    {"kind": "garbage"},
    {"kind": "page"},
    {"kind": "silence", "seconds": 30},
    {"kind": "stall", "after": 10, "seconds": 30},
    {"kind": "lost_answer"},
]


@pytest.mark.parametrize("fault", API_FAULTS, ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}")
def test_faults_of_the_api_pass(
    hub: HubServer, api_proxy: Proxy, cache_path: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    wanted = ("/revision/", "/tree/", "paths-info", "preupload", "objects/batch", "/verify", "/commit/")
    faults = [api_proxy.add(path=path, **fault) for path in wanted]
    push = Push(cache_path, URL, patience=PASSING)
    push.run()
    assert all(fault.met == 1 for fault in faults), [f.path for f in faults if not f.met]
    reading = api_proxy.add(path="/resolve/", times=3, **fault)
    Pull(URL, tmp_path / "copy", patience=PASSING).run()
    assert reading.met == 3
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


CDN_FAULTS = [
    ({"kind": "status", "status": 500}, "both"),
    ({"kind": "reset"}, "both"),
    ({"kind": "flip_request"}, "PUT"),
    ({"kind": "lost_answer"}, "PUT"),
    ({"kind": "truncate"}, "GET"),
    ({"kind": "short"}, "GET"),
    ({"kind": "flip"}, "GET"),
    ({"kind": "stall", "seconds": 30}, "GET"),
]


@pytest.mark.parametrize(("fault", "method"), CDN_FAULTS, ids=lambda value: str(value)[:20])
def test_faults_of_the_other_host_pass(
    hub: HubServer, cdn_proxy: Proxy, cache_path: Path, tmp_path: Path, fault: dict[str, Any], method: str
) -> None:
    faults = [
        cdn_proxy.add(method=one, times=3, **fault) for one in ("PUT", "GET") if method in (one, "both")
    ]
    Push(cache_path, URL, patience=PASSING).run()
    Pull(URL, tmp_path / "copy", patience=PASSING).run()
    assert all(fault.met == 3 for fault in faults)
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


@dataclass
class Sent:
    """A file that is sent through the other host's proxy, and the folder it goes to."""

    path: Path
    folder: RemoteFolder
    sha256: str

    def upload(self, key: str) -> None:
        self.folder.upload(self.path, key, size=self.path.stat().st_size, sha256=self.sha256)


@pytest.fixture
def sent(cdn_proxy: Proxy, tmp_path: Path) -> Sent:
    content = np.random.default_rng(0).bytes(70_000)
    (tmp_path / "file").write_bytes(content)
    folder = open_remote_folder(URL, QUICK, create=True)
    return Sent(tmp_path / "file", folder, hashlib.sha256(content).hexdigest())


def test_files_of_one_content_wait_until_it_was_checked(hub: HubServer, cdn_proxy: Proxy, sent: Sent) -> None:
    """The Hub says that it has a content while wrong bytes of it are not yet removed."""
    done: list[str] = []
    at_first: list[list[str]] = []

    def upload(key: str) -> None:
        sent.upload(key)
        done.append(key)

    second = threading.Thread(target=upload, args=["second"])

    def after(command: str, path: str) -> None:
        if command == "PUT" and not at_first:
            second.start()
            second.join(1)
            at_first.append(list(done))

    cdn_proxy.add("flip_request", method="PUT", times=1)
    cdn_proxy.after = after
    upload("first")
    second.join()
    assert at_first == [[]]
    assert sorted(done) == ["first", "second"]
    assert hub.store[sent.sha256] == sent.path.read_bytes()


def test_wrong_bytes_whose_answer_was_lost_are_sent_again(
    hub: HubServer, cdn_proxy: Proxy, sent: Sent
) -> None:
    """The Hub then says that it has the content, and has not checked it."""

    def after(command: str, path: str) -> None:
        if command == "PUT":
            hub.store[sent.sha256] = b"wrong"
            cdn_proxy.after = None

    lost = cdn_proxy.add("lost_answer", method="PUT", times=1)
    cdn_proxy.after = after
    sent.upload("file")
    assert lost.met == 1
    assert hub.store[sent.sha256] == sent.path.read_bytes()


def test_what_never_passes_is_given_up(hub: HubServer, api_proxy: Proxy, cache_path: Path) -> None:
    api_proxy.add("status", times=10_000, status=503)
    with pytest.raises(RemoteError, match=r"the server kept failing \(503\); run again later"):
        Push(cache_path, URL, patience=QUICK).plan()
    api_proxy.clear()
    api_proxy.add("page", times=10_000)
    with pytest.raises(RemoteError, match="answers with a page of text/html instead of JSON"):
        list_caches(URL, patience=QUICK)


def test_a_hub_that_wants_fewer_requests_is_waited_for(hub: HubServer, cache_path: Path) -> None:
    """For as long as it says, however short the patience with failures is."""
    there = hub.make("dataset", "team/rows")
    hub.wanting_fewer = 3
    started = time.monotonic()
    assert open_remote_folder(URL, replace(QUICK, retry_seconds=0.5, first_retry_seconds=0.5)).objects() == []
    assert time.monotonic() - started >= 3 and hub.wanting_fewer == 0 and there.branches


def test_a_hub_that_wants_too_long_a_pause_is_not_waited_for(hub: HubServer) -> None:
    """Users wait for minutes, not for hours; the error says how long the Hub wants."""
    hub.make("dataset", "team/rows")
    for limit, requests in ((0.01, 1), (2.5, 3)):
        hub.wanting_fewer = 1000
        with pytest.raises(
            RemoteError, match=r"the Hub wants fewer requests \(429\); run again in 1 seconds"
        ):
            open_remote_folder(URL, replace(QUICK, max_wait_seconds=limit)).objects()
        assert hub.wanting_fewer == 1000 - requests


VERBS: dict[str, Callable[[Path], object]] = {
    "ls": lambda _: [listed.state for listed in list_caches(URL, patience=PASSING)],
    "verify": lambda _: verify_remote(URL, patience=PASSING).problems,
    "read": lambda _: read_root(open_remote_folder(URL, PASSING)).manifest.fingerprint,
    "second push": lambda cache: Push(cache, URL, patience=PASSING).run().moved_objects,
    "rm": lambda _: Removal(URL, PASSING).run().state,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", API_FAULTS, ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}")
def test_faults_do_not_show_in_what_commands_find(
    pushed: HubServer,
    cache_path: Path,
    verb: str,
    fault: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {"ls": ["complete"], "verify": [], "second push": 0, "rm": "complete"}
    expected["read"] = load_manifest(cache_path).fingerprint
    with running_proxy(pushed.url) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        added = [proxy.add(path=path, **fault) for path in ("/api/", "/resolve/")]
        assert VERBS[verb](cache_path) == expected[verb]
        assert all(fault.met for fault in added)
    if verb == "rm":
        assert repository(pushed).files("main").keys() == {".gitattributes"}


# ---- meetings and kills


@pytest.mark.parametrize("same", [True, False], ids=["of the same cache", "of two caches"])
def test_two_pushes_at_once(hub: HubServer, cache_path: Path, other_cache: Path, same: bool) -> None:
    paths = [cache_path, cache_path if same else other_cache]
    hub.make("dataset", "team/rows")
    outcomes: list[object] = []

    def push(path: Path) -> None:
        try:
            outcomes.append(Push(path, URL, patience=PASSING).run().fingerprint)
        except UsageError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=push, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if isinstance(outcome, UsageError)]
    assert len(outcomes) == 2 and len(refused) == (0 if same else 1), outcomes
    assert verify_remote(URL).ok
    assert open_cache(URL).fingerprint in outcomes
    assert UNFINISHED not in repository(hub).files("main")


def test_the_stand_in_keeps_nothing_of_an_upload_that_is_cut(hub: HubServer) -> None:
    """It kept what had come, and said from then on that the content was there: pushes ended with 422."""
    address = urlsplit(hub.cdn)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as client:
        line = f"PUT /upload/{'a' * 64}?{SIGNATURE} HTTP/1.1"
        client.sendall(f"{line}\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf".encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert hub.store == {}


def test_killed_at_any_request_the_push_continues(hub: HubServer, api_proxy: Proxy, cache_path: Path) -> None:
    script = Path(__file__).parents[1] / "killed.py"
    command = [sys.executable, str(script), "push", str(cache_path), URL, "0"]
    for fatal in (2, 9, 40, 75, 120):
        hub.repositories.clear()
        hub.store.clear()
        for deaths in range(2):
            requests = itertools.count(1)
            process = subprocess.Popen(command, stdout=subprocess.PIPE)

            def die(_method: str, _path: str, process: Any = process, requests: Any = requests) -> None:
                if next(requests) == fatal + 3 * deaths:  # noqa: B023
                    process.kill()

            api_proxy.before = die
            with process:
                process.wait()
            api_proxy.before = None
            assert process.returncode in (-9, 0)
        Push(cache_path, URL, patience=PASSING).run()
        assert verify_remote(URL).ok
        assert UNFINISHED not in repository(hub).files("main")


# ---- a Hub that lies


def test_a_next_page_at_another_host_is_not_asked_for(
    pushed: HubServer, api_proxy: Proxy, cdn_proxy: Proxy
) -> None:
    def elsewhere(_method: str, path: str, answer: Answer) -> Answer:
        status, headers, content = answer
        link = ("Link", f'<{cdn_proxy.url}/more>; rel="next"')
        return status, [*headers, link] if "/tree/" in path else headers, content

    api_proxy.rewrite = elsewhere
    with pytest.raises(RemoteError, match="next page is said to be at another server"):
        open_remote_folder(URL, QUICK).objects()
    assert cdn_proxy.seen == []


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": 3, "size": 1, "oid": "x"},
        {"type": "file", "path": "a", "size": -1, "oid": "x"},
        {"type": "file", "path": "a", "size": 1, "oid": "x", "lfs": {"oid": "../../x", "size": 1}},
        "nonsense",
        None,
    ],
)
def test_listings_that_are_none_are_refused(pushed: HubServer, api_proxy: Proxy, entry: Any) -> None:
    def lie(_method: str, path: str, answer: Answer) -> Answer:
        status, headers, content = answer
        return status, headers, json.dumps([entry]).encode() if "/tree/" in path else content

    api_proxy.rewrite = lie
    with pytest.raises(RemoteError, match="an entry of the listing is no file"):
        open_remote_folder(URL, QUICK).objects()


def test_a_listing_without_end_is_refused(pushed: HubServer, api_proxy: Proxy) -> None:
    def again(_method: str, path: str, answer: Answer) -> Answer:
        status, headers, content = answer
        link = ("Link", f'<{api_proxy.url}{path}>; rel="next"')
        return status, [*headers, link] if "/tree/" in path else headers, content

    pushed.page_files = 10_000
    api_proxy.rewrite = again
    for listing in (open_remote_folder(URL, QUICK).objects, open_remote_folder(URL, QUICK).folders):
        with pytest.raises(RemoteError, match="next page is said to be one that came before"):
            listing()


@pytest.mark.parametrize("path", ["", "..", "a//b", "/a", "a/../..", 5, None])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_paths_that_are_none_are_refused(path: Any, kind: str, pushed: HubServer, api_proxy: Proxy) -> None:
    entry = {"type": kind, "path": path, "size": 3, "oid": "x"}

    def lie(_method: str, asked: str, answer: Answer) -> Answer:
        return (200, [], json.dumps([entry]).encode()) if "/tree/" in asked else answer

    api_proxy.rewrite = lie
    with pytest.raises(RemoteError, match=r"an entry of the listing is no (file|folder)"):
        open_remote_folder(URL, replace(QUICK, max_retries=0)).folders()


@pytest.mark.parametrize("line", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n"])
def test_a_head_without_end_is_given_up(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes keep coming, so that no timeout of the socket ends it."""
    patience = replace(QUICK, stall_seconds=0.5, upload_seconds=0.5, max_retries=0)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"" if line.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n")
                    while not ended.wait(0.1):
                        connection.sendall(line)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        stack.callback(ended.set)
        threading.Timer(5, ended.set).start()  # so that a failure of this test ends
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(RemoteError, match="the connection"):
            open_remote_folder(URL, patience).objects()
        assert not ended.is_set()


@pytest.mark.parametrize("content", [b"[]", json.dumps([{"type": "directory", "path": "a"}] * 100).encode()])
def test_new_pages_without_end_are_refused(
    content: bytes, pushed: HubServer, api_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()

    def another(_method: str, path: str, answer: Answer) -> Answer:
        link = f'<{api_proxy.url}{path.partition("?")[0]}?cursor={next(numbers)}>; rel="next"'
        return (200, [("Link", link)], content) if "/tree/" in path else answer

    api_proxy.rewrite = another
    monkeypatch.setattr("saecache.store.remote.places.hub.api.MAX_LISTED", 1000)
    place = open_remote_folder(URL, replace(QUICK, max_retries=0))
    for listing in (place.objects, place.folders):
        with pytest.raises(RemoteError, match="and no end of them"):
            listing()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory in /proc")
def test_an_answer_that_would_fill_the_memory_is_refused(pushed: HubServer, api_proxy: Proxy) -> None:
    def lists(_method: str, path: str, answer: Answer) -> Answer:
        return answer if "/tree/" not in path else (200, [], b"[" + b"[]," * 2_000_000 + b"0]")

    api_proxy.rewrite = lists

    def look() -> None:
        with pytest.raises(RemoteError, match="instead of JSON"):
            open_remote_folder(URL, replace(QUICK, max_retries=0)).objects()

    right_or_refused(look)


@pytest.mark.parametrize(
    "header",
    [
        {"chunk_size": "²"},
        {"chunk_size": "9" * 5000},
        {"²": "x"},
        {"9" * 5000: "x"},
        {"chunk_size": "-1"},
        "x",
    ],
)
def test_parts_of_an_upload_that_are_no_numbers(
    hub: HubServer, api_proxy: Proxy, cache_path: Path, header: Any
) -> None:
    hub.multipart_over, hub.chunk_bytes = 2000, 1500

    def altered(_method: str, path: str, answer: Answer) -> Answer:
        if not path.endswith("/objects/batch"):
            return answer
        status, headers, body = answer
        values = json.loads(body)
        for upload in (one["actions"]["upload"] for one in values["objects"] if "actions" in one):
            if "header" in upload:
                upload["header"] = {**upload["header"], **header} if isinstance(header, dict) else header
        body = json.dumps(values).encode()
        return status, [pair for pair in headers if pair[0].lower() != "content-length"], body

    api_proxy.rewrite = altered

    def push() -> None:
        with contextlib.suppress(RemoteError):
            Push(cache_path, URL, patience=QUICK).run()

    right_or_refused(push)


def test_an_upload_to_nowhere_is_refused(hub: HubServer, api_proxy: Proxy, cache_path: Path) -> None:
    hub.cdn_shown = "file:///etc"
    with pytest.raises(RemoteError, match="names a place that is no URL"):
        Push(cache_path, URL, patience=QUICK).run()


# ---- access


def test_tokens_and_rights(pushed: HubServer, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    assert open_cache(URL).fingerprint
    with pytest.raises(AccessError, match=r"not allowed.*the token lacks the right"):
        Push(cache_path, f"{URL}/again").run()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong9e3d")
    with pytest.raises(AccessError, match="the token was not accepted") as refused:
        open_cache(URL)
    assert "hf_wrong9e3d" not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
    with pytest.raises(
        AccessError, match=r"no such repository, or it is private.*log in with 'hf auth login'"
    ):
        open_cache(URL)
    repository(pushed).private = False
    assert open_cache(URL).fingerprint


def test_no_message_and_no_object_shows_the_token(hub: HubServer) -> None:
    folder = open_remote_folder(URL)
    shown = f"{folder!r} {vars(folder)} {vars(folder.bucket)} {vars(folder._api.requests)}"
    assert WRITER not in shown
    with pytest.raises(AccessError) as refused:
        folder.objects()
    assert WRITER not in str(refused.value)


def test_offline_and_wrong_endpoints(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(UsageError, match="check HF_ENDPOINT"):
        open_remote_folder(URL)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        open_cache(URL)


def test_a_harvest_cannot_write_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="harvest into a folder or a bucket, and then 'saecache cache push'"):
        BucketDelivery(tmp_path, URL)


def test_an_api_that_redirects_elsewhere_gets_no_token(
    hub: HubServer, api_proxy: Proxy, cdn_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saecache.store.remote.places.bucket import Bucket
    from saecache.store.remote.places.hub.requests import HubRequests

    hub.store["x" * 64] = b"{}"
    bucket = Bucket(parse_url(URL), QUICK)
    requests = HubRequests(bucket, URL, hub.url, WRITER)
    assert requests.ask("GET", f"{hub.cdn}/blob/{'x' * 64}?Signature=5c1e", "looking").body == b"{}"
    assert hub.leaks == []


# ---- the server is one that huggingface_hub understands


def test_huggingface_hub_reads_what_we_write(pushed: HubServer, cache_path: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from huggingface_hub import HfApi, hf_hub_download
api = HfApi(endpoint={pushed.url!r}, token={WRITER!r})
tree = api.list_repo_tree("team/rows", repo_type="dataset", recursive=True)
files = [f for f in tree if hasattr(f, "size")]
for file in files[:20]:
    path = hf_hub_download("team/rows", file.path, repo_type="dataset", cache_dir=sys.argv[1],
                           endpoint={pushed.url!r}, token={WRITER!r})
    content = open(path, "rb").read()
    assert len(content) == file.size
    if file.lfs:
        import hashlib
        assert hashlib.sha256(content).hexdigest() == file.lfs.sha256
print(len(files))
"""
    done = python(code, str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(repository(pushed).files("main"))


def test_we_read_what_huggingface_hub_writes(hub: HubServer, cache_path: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from huggingface_hub import HfApi
api = HfApi(endpoint={hub.url!r}, token={WRITER!r})
api.create_repo("team/rows", repo_type="dataset", private=True)
api.upload_folder(repo_id="team/rows", repo_type="dataset", folder_path=sys.argv[1])
"""
    done = python(code, str(cache_path))
    assert done.returncode == 0, done.stderr
    assert verify_remote(URL).ok
    assert Push(cache_path, URL).run().moved_objects == 0
    Pull(URL, tmp_path / "copy").run()
    assert cache_bytes(tmp_path / "copy") == cache_bytes(cache_path)


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)


def test_sha256_of_small_files_is_compared_by_reading(pushed: HubServer, cache_path: Path) -> None:
    """The Hub names small files by git's sha1: a push without a memory of them reads them."""
    folder = open_remote_folder(URL)
    key = next(
        p for p, b in repository(pushed).files("main").items() if not b.sha256 and p.endswith("zarr.json")
    )
    content = (cache_path / key).read_bytes()
    found = folder.find_equal(key, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert found is not None and found.sha256 is None
    assert folder.find_equal(key, size=len(content), sha256="0" * 64) is None
