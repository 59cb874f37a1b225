"""A cache goes to a real bucket and comes back: the same bytes, nothing moved twice, nothing half visible."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import (
    CorruptCacheError,
    IncompleteCacheError,
    UsageError,
    inspect_output,
    open_cache,
    verify_cache,
)
from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.store.remote.cache_objects import HARVEST_CLAIM, PROVENANCE, ROOT, UNFINISHED
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.verify import verify_remote

from .conftest import PASSING
from .server import READER_KEY, READER_SECRET

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(params=["s3", "file", "memory"])
def url(request: pytest.FixtureRequest, team: str, tmp_path: Path) -> str:
    return {
        "s3": f"{team}/c",
        "file": f"file://{tmp_path}/bucket/c",
        "memory": f"memory://{tmp_path.name}/c",
    }[request.param]


@pytest.fixture
def pushed(team: str, cache_path: Path) -> RemoteFolder:
    """A cache that is in the bucket."""
    Push(cache_path, f"{team}/c").run()
    return open_remote_folder(f"{team}/c")


def keys(location: RemoteFolder) -> set[str]:
    return {info.key for info in location.objects()}


def largest(path: Path) -> str:
    """The path of the largest shard."""
    return max(open_cache(path).manifest.files, key=lambda file: file.size).path


def damage(path: Path) -> None:
    """One bit of a file, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_there_and_back(url: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    planned = Push(cache_path, url).plan()
    assert planned.dry_run
    assert (planned.moved_objects, planned.moved_bytes) == (planned.objects, planned.bytes)
    assert not keys(open_remote_folder(url))
    done = Push(cache_path, url).run()
    assert (done.moved_objects, done.dry_run) == (planned.objects, False)
    assert keys(open_remote_folder(url)) == {*contents(cache_path), PROVENANCE}
    assert Push(cache_path, url).run().moved_objects == 0

    planned = Pull(url, tmp_path / "copy").plan()
    assert planned.moved_bytes == planned.bytes > 0
    assert not (tmp_path / "copy").exists()
    assert Pull(url, tmp_path / "copy").run().moved_objects == planned.objects
    assert contents(tmp_path / "copy") == contents(cache_path)
    assert (tmp_path / "copy" / PROVENANCE).read_bytes() == (cache_path / PROVENANCE).read_bytes()
    assert verify_cache(tmp_path / "copy").ok
    assert Pull(url, tmp_path / "copy").run().moved_objects == 0

    assert verify_remote(url).ok
    assert verify_remote(url, quick=True).ok
    removed = Removal(url).run()
    assert (removed.state, removed.objects) == ("complete", done.objects)
    assert not keys(open_remote_folder(url))
    with pytest.raises(UsageError, match="nothing is removed"):
        Removal(url)


@pytest.mark.parametrize(
    "storage",
    [{"dtype": "int8"}, {"dtype": "bfloat16"}, {"dtype": "float32", "codec": {"kind": "zstd"}}],
    ids=["int8", "bfloat16", "zstd"],
)
def test_every_encoding(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any], contents: Contents, storage: dict[str, Any]
) -> None:
    write_cache(tmp_path / "cache", source, storage=storage)
    url = f"memory://{tmp_path.name}/c"
    Push(tmp_path / "cache", url).run()
    assert verify_remote(url).ok
    Pull(url, tmp_path / "copy").run()
    assert contents(tmp_path / "copy") == contents(tmp_path / "cache")
    assert verify_cache(tmp_path / "copy").ok


def test_only_what_differs_moves(pushed: RemoteFolder, cache_path: Path, tmp_path: Path) -> None:
    shard = largest(cache_path)
    size = (cache_path / shard).stat().st_size
    pushed.delete([ROOT, shard])
    done = Push(cache_path, pushed.url).run()
    root_bytes = (cache_path / ROOT).stat().st_size
    assert (done.moved_objects, done.moved_bytes) == (2, size + root_bytes)
    assert verify_remote(pushed.url).ok

    Pull(pushed.url, tmp_path / "copy").run()
    (tmp_path / "copy" / shard).unlink()
    mended = Pull(pushed.url, tmp_path / "copy").run()
    assert (mended.moved_objects, mended.moved_bytes) == (1, size)
    assert verify_cache(tmp_path / "copy").ok


def test_a_finished_push_needs_no_right_to_write(
    pushed: RemoteFolder, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed.put(UNFINISHED, (cache_path / ROOT).read_bytes())
    Push(cache_path, pushed.url).run()  # ends what a push that was killed at its very end left
    assert UNFINISHED not in keys(pushed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert Push(cache_path, pushed.url).run().moved_objects == 0


def test_bytes_left_by_another_cache_are_not_taken_for_ours(
    team: str, cache_path: Path, other_cache: Path
) -> None:
    """An interrupted removal may leave objects of the right name and size."""
    Push(other_cache, f"{team}/c").run()
    location = open_remote_folder(f"{team}/c")
    location.delete([ROOT])
    done = Push(cache_path, f"{team}/c").run()
    assert done.moved_objects > done.objects / 2
    assert verify_remote(f"{team}/c").ok


def test_a_damaged_copy_is_mended_on_request(
    pushed: RemoteFolder, cache_path: Path, tmp_path: Path, contents: Contents
) -> None:
    copy = tmp_path / "copy"
    Pull(pushed.url, copy).run()
    damage(copy / largest(cache_path))
    assert not verify_cache(copy).ok
    assert Pull(pushed.url, copy).run().moved_objects == 0
    assert Pull(pushed.url, copy, verify=True).run().moved_objects == 1
    (copy / "rows" / "zarr.json").write_text("{}")
    Pull(pushed.url, copy).run()
    assert contents(copy) == contents(cache_path)


def test_a_damaged_object_is_found_and_mended(pushed: RemoteFolder, cache_path: Path, tmp_path: Path) -> None:
    shard = largest(cache_path)
    content = bytearray((cache_path / shard).read_bytes())
    content[5] ^= 1
    sha256 = next(file.sha256 for file in open_cache(cache_path).manifest.files if file.path == shard)
    # as a bit that flipped inside the store: the sha256 recorded beside the object is still the right one
    import obstore

    store = pushed.bucket.store("writing")
    obstore.put(store, pushed.name_of(shard), bytes(content), attributes={"sha256": sha256})
    assert verify_remote(pushed.url, quick=True).ok
    report = verify_remote(pushed.url, patience=PASSING)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(f"{shard}: sha256 is")
    with pytest.raises(CorruptCacheError, match=f"{shard} is damaged"):
        Pull(pushed.url, tmp_path / "copy", patience=PASSING).run()
    assert inspect_output(tmp_path / "copy") != "complete"
    assert not (tmp_path / "copy" / shard).exists()
    assert Push(cache_path, pushed.url).run().moved_objects == 0
    assert Push(cache_path, pushed.url, verify=True).run().moved_objects == 1
    assert verify_remote(pushed.url).ok
    Pull(pushed.url, tmp_path / "copy").run()
    assert verify_cache(tmp_path / "copy").ok


def test_verify_names_what_is_missing_or_short(pushed: RemoteFolder, cache_path: Path) -> None:
    shard = largest(cache_path)
    pushed.put(shard, b"short")
    pushed.delete(["rows/token/zarr.json"])
    pushed.put("stats/zarr.json", b"{}")
    pushed.put("rows/stray", b"x")
    for quick in (False, True):
        problems = verify_remote(pushed.url, quick=quick, patience=PASSING).problems
        assert len(problems) == 4
        assert f"{shard}: 5 bytes, expected" in "\n".join(problems)
        assert "rows/token/zarr.json: missing" in problems
        assert "rows/stray: no part of the cache" in problems


def test_a_damaged_cache_is_not_pushed(team: str, cache_path: Path, tmp_path: Path) -> None:
    source = open_remote_folder(f"file://{cache_path}")
    for info in source.objects():
        target = tmp_path / "copy" / info.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((cache_path / info.key).read_bytes())
    shard = largest(cache_path)
    damage(tmp_path / "copy" / shard)
    with pytest.raises(CorruptCacheError, match=f"{shard} is damaged"):
        Push(tmp_path / "copy", f"{team}/c").run()
    location = open_remote_folder(f"{team}/c")
    assert shard not in keys(location)
    assert ROOT not in keys(location)
    (tmp_path / "copy" / "rows" / "zarr.json").write_text("{}")
    with pytest.raises(CorruptCacheError, match="not the metadata"):
        Push(tmp_path / "copy", f"{team}/d")


def test_places_that_are_taken(pushed: RemoteFolder, cache_path: Path, other_cache: Path, team: str) -> None:
    with pytest.raises(UsageError, match=r"holds another cache \(fingerprint .*choose another URL"):
        Push(other_cache, pushed.url).run()
    with pytest.raises(UsageError, match=rf"holds other things \(c/.*for example {team}/other"):
        Push(other_cache, team).run()
    open_remote_folder(f"{team}/half").put(UNFINISHED, (cache_path / ROOT).read_bytes())
    with pytest.raises(UsageError, match="taken by an unfinished push"):
        Push(other_cache, f"{team}/half").run()
    with pytest.raises(UsageError, match="no such folder"):
        Push(cache_path / "nowhere", f"{team}/x")


def test_folders_that_are_taken(
    pushed: RemoteFolder, cache_path: Path, other_cache: Path, tmp_path: Path, contents: Contents
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        Pull(pushed.url, tmp_path / "taken").run()
    before = contents(other_cache)
    with pytest.raises(UsageError, match="holds another cache"):
        Pull(pushed.url, other_cache).run()
    assert contents(other_cache) == before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".pulling").mkdir()
    (tmp_path / "linked" / "rows").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptCacheError, match="is a link"):
        Pull(pushed.url, tmp_path / "linked").run()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_a_former_pull_left_is_not_removed_through_a_link(
    cache_path: Path,
    tmp_path: Path,
    contents: Contents,
    make_source: Callable[..., Any],
    write_cache: Callable[..., Any],
) -> None:
    """The folder of a pull that was stopped may come from anybody."""
    write_cache(tmp_path / "former", make_source(5, hooks={"theirs": 8}))
    mine = contents(tmp_path / "former")
    (tmp_path / "copy" / ".pulling").mkdir(parents=True)
    (tmp_path / "copy" / ".pulling" / ROOT).write_bytes(mine[ROOT])
    (tmp_path / "copy" / "rows").mkdir()
    (tmp_path / "copy" / "rows" / "theirs").symlink_to(tmp_path / "former")
    with pytest.raises(CorruptCacheError, match="theirs is a link"):
        Pull(cache_path.as_uri(), tmp_path / "copy").run()
    assert contents(tmp_path / "former") == mine


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.truncate(path, 1 << 40)], ids=["FIFO", "large"])
def test_files_in_a_folder_of_others_are_not_waited_for(
    make: Callable[[Path], None], cache_path: Path, tmp_path: Path, contents: Contents
) -> None:
    """Neither what a former pull was of, nor metadata of a copy."""
    (tmp_path / "stopped" / ".pulling").mkdir(parents=True)
    shutil.copytree(cache_path, tmp_path / "copy")
    (tmp_path / "copy" / "rows" / ROOT).unlink()
    for place in (tmp_path / "stopped" / ".pulling" / ROOT, tmp_path / "copy" / "rows" / ROOT):
        if make is not os.mkfifo:
            place.touch()
        make(place)
    for name in ("stopped", "copy"):
        Pull(cache_path.as_uri(), tmp_path / name).run()
        assert contents(tmp_path / name) == contents(cache_path)


def test_the_lock_of_a_pull_is_no_link(cache_path: Path, tmp_path: Path) -> None:
    (tmp_path / "copy" / ".pulling").mkdir(parents=True)
    (tmp_path / "copy" / ".pulling" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="lock cannot be opened as a file"):
        Pull(cache_path.as_uri(), tmp_path / "copy").run()
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_not_whole_is_said(team: str, cache_path: Path, tmp_path: Path) -> None:
    location = open_remote_folder(f"{team}/c")
    with pytest.raises(UsageError, match="there is nothing there"):
        Pull(location.url, tmp_path / "copy")
    location.put(UNFINISHED, (cache_path / ROOT).read_bytes())
    for look in (lambda: Pull(location.url, tmp_path / "copy"), lambda: verify_remote(location.url)):
        with pytest.raises(IncompleteCacheError, match="pushing or removing"):
            look()
    assert not (tmp_path / "copy").exists()
    (tmp_path / "copy" / ".pulling").mkdir(parents=True)
    with pytest.raises(IncompleteCacheError, match="cache pull"):
        open_cache(tmp_path / "copy")


def test_a_full_disk_is_said_before(
    pushed: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 64 << 20})())
    with pytest.raises(UsageError, match=r"are to come, 64 MiB are free"):
        Pull(pushed.url, tmp_path / "copy").run()
    assert not (tmp_path / "copy").exists()


def test_removal_leaves_what_is_not_the_caches(pushed: RemoteFolder) -> None:
    pushed.put("notes.txt", b"mine")
    assert Removal(pushed.url).run().foreign == 1
    assert keys(pushed) == {"notes.txt"}


def test_removal_continues(pushed: RemoteFolder, cache_path: Path) -> None:
    pushed.put(UNFINISHED, (cache_path / ROOT).read_bytes())
    pushed.delete([ROOT, largest(cache_path)])
    assert Removal(pushed.url).plan().state == "unfinished"
    Removal(pushed.url).run()
    assert not keys(pushed)


def test_removal_of_what_no_manifest_describes(pushed: RemoteFolder) -> None:
    """An unfinished harvest, or a damaged manifest: the folders of the format tell what is a cache's."""
    pushed.put(ROOT, pushed.get(ROOT, 1 << 20).replace(b'"context": 16', b'"context": 17'))
    pushed.put("rows2/thesis.tex", b"mine")
    plan = Removal(pushed.url).plan()
    assert (plan.state, plan.fingerprint, plan.foreign) == ("unreadable", "", 1)
    pushed.delete([ROOT])
    with pytest.raises(UsageError, match="nothing is removed"):
        Removal(pushed.url)
    pushed.put(HARVEST_CLAIM, b"{}")
    assert Removal(pushed.url).run().state == "unfinished"
    assert keys(pushed) == {"rows2/thesis.tex"}


def test_the_first_provenance_stays(
    pushed: RemoteFolder, cache_path: Path, tmp_path: Path, source: Any, write_cache: Callable[..., Any]
) -> None:
    """Two people harvest the same: their caches differ in when and where, and in nothing else."""
    write_cache(tmp_path / "again", source)
    mine = json.loads((tmp_path / "again" / PROVENANCE).read_bytes())
    mine["attributes"]["machine"] = "another"
    (tmp_path / "again" / PROVENANCE).write_text(json.dumps(mine))
    assert Push(tmp_path / "again", pushed.url).run().moved_objects == 0
    assert pushed.get(PROVENANCE, 1 << 20) == (cache_path / PROVENANCE).read_bytes()
