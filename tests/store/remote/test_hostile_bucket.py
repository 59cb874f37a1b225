"""What comes from a bucket may come from anybody: nothing of it is written before it is checked."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CorruptCacheError, SaecacheError, UsageError
from saecache.store.identity import sha256_of_json
from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.store.remote.cache_objects import PROVENANCE, ROOT
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.team import list_caches

from .conftest import HOOK, QUICK

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def place(tmp_path: Path, cache_path: Path) -> RemoteFolder:
    """A pushed cache whose objects the test replaces."""
    Push(cache_path, f"memory://{tmp_path.name}/c").run()
    return open_remote_folder(f"memory://{tmp_path.name}/c")


def refused(
    place: RemoteFolder, tmp_path: Path, kind: type[Exception] = CorruptCacheError, match: str | None = None
) -> None:
    """The pull fails, and has written neither a cache nor anything outside its folder."""
    (tmp_path / "in").mkdir()
    with pytest.raises(kind, match=match):
        Pull(place.url, tmp_path / "in" / "copy", patience=QUICK).run()
    assert not (tmp_path / "in" / "copy" / ROOT).exists()
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {"copy"}
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def first_path(manifest: dict[str, Any], path: str) -> None:
    manifest["files"][0]["path"] = path


def rename_hook(manifest: dict[str, Any], name: str) -> None:
    manifest["hooks"][name] = manifest["hooks"].pop(HOOK)


def twice(manifest: dict[str, Any]) -> None:
    manifest["files"][1] = copy.deepcopy(manifest["files"][0])


MANIFESTS: dict[str, Change] = {
    "a path that climbs": lambda m: first_path(m, "../../outside"),
    "an absolute path": lambda m: first_path(m, "/tmp/outside"),
    "a path of Windows": lambda m: first_path(m, "..\\outside"),
    "our own folder": lambda m: first_path(m, ".pulling/lock"),
    "a hook that climbs": lambda m: rename_hook(m, "../../x"),
    "one file twice": twice,
    "an absurd size": lambda m: m["files"][0].update(size=2**47),
    "a negative size": lambda m: m["files"][0].update(size=-1),
    "absurd counts": lambda m: m.update(train_rows=2**47),
    "more rows than its files": lambda m: m.update(train_rows=m["train_rows"] + 10**6),
    "a width of nothing": lambda m: m["hooks"][HOOK].update(d_model=0),
    "an absurd cut": lambda m: m["cut"].update(chunk_rows=2**30),
    "a count that is no number": lambda m: m["counts"].update(documents="many"),
    "a digest that is none": lambda m: m["files"][0].update(sha256="../" * 21 + "x"),
    "an unknown field": lambda m: m.update(run="rm -rf"),
    "another identity": lambda m: m["identity"].update(seed=5),
    "no files": lambda m: m.update(files=[]),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests(place: RemoteFolder, tmp_path: Path, change: Change) -> None:
    document = json.loads(place.get(ROOT, 1 << 20))
    manifest = document["attributes"]["saecache"]
    del manifest["checksum"]
    change(manifest)
    manifest["checksum"] = sha256_of_json(manifest)
    place.put(ROOT, json.dumps(document).encode())
    refused(place, tmp_path)
    assert [listed.state for listed in list_caches(place.url, patience=QUICK)] == ["unreadable"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", CorruptCacheError),
        (b"[" * 100_000 + b"]" * 100_000, CorruptCacheError),
        (b'{"attributes": {"saecache": ' + b'{"a":' * 5000 + b"1" + b"}" * 5002, SaecacheError),
        (b'{"attributes": {"saecache": {"format_version": 7}}}', UsageError),
        (b'{"attributes": []}', UsageError),
        (b"\xff\xfe", CorruptCacheError),
        (b'{"a": NaN}', SaecacheError),
    ],
    ids=["empty", "deep", "deep manifest", "newer", "none", "not text", "not a number"],
)
def test_roots(place: RemoteFolder, tmp_path: Path, content: bytes, kind: type[Exception]) -> None:
    place.put(ROOT, content)
    refused(place, tmp_path, kind)


def test_metadata_that_say_something_else_than_the_manifest(place: RemoteFolder, tmp_path: Path) -> None:
    """Another reader would believe them."""
    document = json.loads(place.get(ROOT, 1 << 20))
    document["consolidated_metadata"]["metadata"]["rows/token"]["shape"] = [2**40]
    place.put(ROOT, json.dumps(document).encode())
    refused(place, tmp_path, match="not those that follow from the manifest")


@pytest.mark.parametrize(
    "content", [b"{}", b"", b'{"zarr_format": 3}' * 10**5], ids=["other", "empty", "long"]
)
@pytest.mark.parametrize("key", ["rows/token/zarr.json", PROVENANCE])
def test_nested_metadata(place: RemoteFolder, tmp_path: Path, key: str, content: bytes) -> None:
    place.put(key, content)
    refused(place, tmp_path)


@pytest.mark.parametrize("size", [-1, 1], ids=["short", "long"])
def test_objects_of_another_size(place: RemoteFolder, cache_path: Path, tmp_path: Path, size: int) -> None:
    shard = "rows/token/c/0"
    content = (cache_path / shard).read_bytes()
    place.put(shard, content[:-1] if size < 0 else content + b"\0")
    refused(place, tmp_path, match=f"{shard}: {len(content) + size} bytes, expected {len(content)}")
