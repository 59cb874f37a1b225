"""Every verb against every fault: what passes is repeated and does not show, what lasts ends soon.

The cells are generated, and every one is run. The only faults that nobody can see are those that leave an
answer well formed and wrong: a flipped letter in a listing, for example.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from saecache.store import CorruptCacheError, SaecacheError
from saecache.store.remote import Patience, RemoteFolder, open_remote_folder
from saecache.store.remote.places.failures import AccessError, RemoteError
from saecache.store.remote.places.file_blocks import part_size

from ....killing import DEADLINE_SECONDS
from ..conftest import PASSING, QUICK
from ..proxy import Proxy
from ..server import BUCKET, S3Server

SMALL = b"small" * 1000
BYTES = os.urandom(200_000)
LARGE = os.urandom(part_size(0) + 1000)
LASTING = replace(  # what lasts ends with an error, and so may an honest request on a slow machine
    QUICK,
    stall_seconds=0.2,
    upload_seconds=0.3,
    retry_seconds=0.3,
    first_retry_seconds=0.3,
    max_retries=1,
    max_backoff_seconds=0.02,
)
PASSING = replace(  # on a slow machine honest requests may take too long as well: they are repeated
    PASSING, stall_seconds=0.2, upload_seconds=0.6, max_backoff_seconds=0.02
)
PASSING_PARTS = replace(PASSING, upload_seconds=10)  # 8 MiB in one request


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Place:
    """A prefix, seen through the proxy by ``folder`` and directly by ``real``."""

    real: RemoteFolder
    folder: RemoteFolder
    files: Path

    def parse(self, content: bytes) -> bytes:
        if content != SMALL:
            raise CorruptCacheError("not what was written")
        return content

    def upload(self, name: str, content: bytes) -> bool:
        (self.files / name).write_bytes(content)
        self.folder.upload(self.files / name, f"new/{name}", size=len(content), sha256=sha256(content))
        return self.real.checksum(f"new/{name}", size=len(content)) == sha256(content)

    def download(self) -> bool:
        self.folder.download("x/bytes", self.files / "back", size=len(BYTES), sha256=sha256(BYTES))
        return (self.files / "back").read_bytes() == BYTES

    def put(self, create: bool) -> bool:
        written = self.folder.put("new/put", SMALL, create=create)
        return (written or create) and self.real.get("new/put", 10_000) == SMALL

    def delete(self, *keys: str) -> bool:
        for key in keys:
            self.real.put(key, b"1")
        self.folder.delete(keys)
        return self.real.child("old").objects() == []


VERBS: dict[str, tuple[str, str, Callable[[Place], bool]]] = {  # method, path of its first request, the verb
    "read": ("GET", "/x/small", lambda p: p.folder.read("x/small", 10_000, p.parse) == SMALL),
    "download": ("GET", "/x/bytes", Place.download),
    "checksum": ("GET", "/x/bytes", lambda p: p.folder.checksum("x/bytes", size=len(BYTES)) == sha256(BYTES)),
    "head": ("HEAD", "/x/small", lambda p: getattr(p.folder.head("x/small"), "size", None) == len(SMALL)),
    "objects": ("GET", "list-type", lambda p: len(p.folder.objects(must_show="x/small")) == 2),
    "folders": ("GET", "list-type", lambda p: p.folder.folders() == (["x"], [])),
    "put": ("PUT", "/new/put", lambda p: p.put(create=False)),
    "create": ("PUT", "/new/put", lambda p: p.put(create=True)),
    "upload": ("PUT", "/new/one", lambda p: p.upload("one", BYTES)),
    "upload parts": ("PUT", "/new/parts", lambda p: p.upload("parts", LARGE)),
    "begin parts": ("POST", "/new/parts", lambda p: p.upload("parts", LARGE)),
    "delete": ("", "delete", lambda p: p.delete("old/1")),
    "delete many": ("", "delete", lambda p: p.delete("old/1", "old/2", "old/3")),
}
READING = ("read", "download", "checksum", "head", "objects", "folders")
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503, "code": "SlowDown"},
    "429": {"kind": "status", "status": 429, "code": "TooManyRequests"},
    "408": {"kind": "status", "status": 408, "code": "RequestTimeout"},
    "409": {"kind": "status", "status": 409, "code": "ConditionalRequestConflict"},
    "lost answer": {"kind": "lost_answer"},
    "reset in the body": {"kind": "reset", "after": 60},
    "cut body": {"kind": "truncate", "after": 60},
    "stall": {"kind": "stall", "after": 60, "seconds": 20},
    "silence": {"kind": "silence", "seconds": 20},
    "trickle": {"kind": "trickle", "seconds": 0.05},
    "not HTTP": {"kind": "garbage"},
    "a page": {"kind": "page"},
    "nothing": {"kind": "empty"},
    "endless listing": {"kind": "endless"},
}
REFUSALS: dict[str, dict[str, Any]] = {
    "forbidden": {"kind": "status", "status": 403, "code": "AccessDenied"},
    "expired": {"kind": "status", "status": 400, "code": "ExpiredToken"},
    "no bucket": {"kind": "status", "status": 404, "code": "NoSuchBucket"},
}


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Iterator[RemoteFolder]:
    """The bucket, reached directly."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_server.environment().items():
            environment.setenv(name, value)
        folder = open_remote_folder(f"s3://{BUCKET}")
        for purpose in ("reading", "writing", "parts"):  # they take their keys from the environment
            folder.bucket.store(purpose)
        yield folder


@pytest.fixture(scope="module")
def objects(bucket: RemoteFolder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prefix with the objects x/small and x/bytes, which no verb changes."""
    real = bucket.child(uuid4().hex[:12])
    write_objects(real, tmp_path_factory.mktemp("objects") / "bytes")
    return real.url


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    team: str,
    proxy: Proxy,
    bucket: RemoteFolder,
    objects: str,
    tmp_path: Path,
) -> Place:
    """Where ``verb`` works: at the objects if it reads, at a place of its own if it writes."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    url = objects if parameters.get("verb") in READING else team
    patience = Patience()
    if request.function is test_what_lasts_ends_soon:
        patience = LASTING
    elif request.function is test_what_passes_does_not_show:
        patience = PASSING_PARTS if "parts" in parameters["verb"] else PASSING
    return Place(bucket.child(url.rsplit("/", 1)[-1]), open_remote_folder(url, patience), tmp_path)


def write_objects(real: RemoteFolder, path: Path) -> None:
    real.put("x/small", SMALL)
    path.write_bytes(BYTES)
    real.upload(path, "x/bytes", size=len(BYTES), sha256=sha256(BYTES))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_what_passes_does_not_show(place: Place, proxy: Proxy, verb: str, fault: dict[str, Any]) -> None:
    method, path, work = VERBS[verb]
    met = proxy.add(method=method, path=path, **fault)
    assert work(place)
    assert met.met == 1


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_what_lasts_ends_soon(place: Place, proxy: Proxy, verb: str, fault: dict[str, Any]) -> None:
    met = proxy.add(times=10**6, **fault)
    started = time.monotonic()
    try:
        right = VERBS[verb][2](place)
    except (RemoteError, CorruptCacheError) as error:
        assert str(error)
    else:
        assert right, "a fault may leave a verb alone, but not make it lie"
    while not met.met and time.monotonic() - started < DEADLINE_SECONDS:
        time.sleep(0.01)  # a proxy that was not at its turn meets it after the client has given up
    assert met.met
    assert time.monotonic() - started < DEADLINE_SECONDS  # a cell takes seconds, but for busy machines


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("verb", VERBS)
def test_refusals_are_not_repeated(place: Place, proxy: Proxy, verb: str, fault: dict[str, Any]) -> None:
    proxy.add(times=10**6, **fault)
    if (verb, fault.get("code")) == ("head", "NoSuchBucket"):
        assert place.folder.head("x/small") is None  # 404 without a word: no object, as far as HEAD can tell
        return
    with pytest.raises(AccessError):
        VERBS[verb][2](place)
    assert len(proxy.seen) <= 2  # an answer to HEAD has no words: GET asks for them


def test_an_object_that_is_not_there(place: Place) -> None:
    write_objects(place.real, place.files / "bytes")
    for verb in ("read", "download", "checksum"):
        place.real.delete(["x/small", "x/bytes"])
        with pytest.raises(SaecacheError, match="no such object"):
            VERBS[verb][2](place)
    assert place.folder.head("x/small") is None
    place.folder.delete(["x/small", "x/bytes"])
