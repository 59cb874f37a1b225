"""The table of a team's caches, from manifests alone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CacheWriter, open_cache
from saecache.store.remote.cache_objects import ROOT, UNFINISHED
from saecache.store.remote.claims import HarvestedCache, claim_for_harvest
from saecache.store.remote.places.by_url import open_remote_folder
from saecache.store.remote.places.failures import AccessError
from saecache.store.remote.push import Push
from saecache.store.remote.team import Listed, format_listing, list_caches

from .conftest import PASSING
from .proxy import Proxy

IDENTITY = {
    "model": {"name": "EleutherAI/pythia-160m", "revision": "abc"},
    "text": {"kind": "hub", "dataset": "monology/pile", "split": "train"},
}


@pytest.fixture
def caches(
    team: str, cache_path: Path, tmp_path: Path, source: Any, write_cache: Callable[..., Any]
) -> dict[str, Path]:
    """Whole, nested, unfinished, unreadable, and other things."""
    write_cache(tmp_path / "pile", source, identity=IDENTITY)
    Push(tmp_path / "pile", f"{team}/pythia/pile").run()
    Push(cache_path, f"{team}/plain").run()
    root = (cache_path / ROOT).read_bytes()
    place = open_remote_folder(team)
    place.put(f"half/{UNFINISHED}", root)
    place.put(f"bad/{ROOT}", root.replace(b'"context": 16', b'"context": 17'))
    newer = json.loads(root)
    newer["attributes"]["saecache"]["format_version"] = 99
    place.put(f"newer/{ROOT}", json.dumps(newer).encode())
    place.put(f"zarr/{ROOT}", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    place.put("notes/readme.txt", b"hello")
    return {"pythia/pile": tmp_path / "pile", "plain": cache_path}


def test_a_team(team: str, caches: dict[str, Path], proxy: Proxy) -> None:
    found = {listed.url.removeprefix(f"{team}/"): listed for listed in list_caches(team, patience=PASSING)}
    assert {name: listed.state for name, listed in found.items()} == {
        "pythia/pile": "complete",
        "plain": "complete",
        "half": "unfinished",
        "bad": "unreadable",
        "newer": "unreadable",
    }
    for name, path in caches.items():
        manifest, listed = open_cache(path).manifest, found[name]
        assert listed.fingerprint == manifest.fingerprint
        assert listed.rows == manifest.train_rows + manifest.heldout_rows
        assert (listed.context, listed.hooks) == (manifest.context, tuple(manifest.hooks))
        assert listed.size == sum(file.size for file in manifest.files)
        assert listed.modified is not None
    assert (found["pythia/pile"].model, found["pythia/pile"].dataset) == (
        "EleutherAI/pythia-160m",
        "monology/pile",
    )
    assert found["half"].fingerprint == found["plain"].fingerprint
    assert "checksum" in found["bad"].problem
    assert "version 99" in found["newer"].problem
    assert not [seen for seen in proxy.seen if "/c/" in seen.path]  # no shard was asked for

    table = format_listing(list_caches(team, patience=PASSING), team).splitlines()
    assert table[0].split() == [
        *("cache", "model", "hooks", "dataset", "rows"),
        *("context", "stored", "size", "date", "fingerprint"),
    ]
    assert len(table) == 6
    line = next(line for line in table if line.startswith("pythia/pile "))
    assert "EleutherAI/pythia-160m" in line
    assert "monology/pile" in line
    assert [line.split()[0] for line in table if line.endswith("not complete")] == ["half"]


def test_one_cache_and_none(team: str, caches: dict[str, Path]) -> None:
    assert [listed.url for listed in list_caches(f"{team}/plain")] == [f"{team}/plain"]
    assert list_caches(f"{team}/notes") == []
    assert list_caches(f"{team}/nowhere") == []
    with pytest.raises(AccessError, match="no such bucket"):
        list_caches("s3://nowhere/x")


def test_folders_of_this_machine(caches: dict[str, Path], tmp_path: Path) -> None:
    assert [listed.url for listed in list_caches(tmp_path.as_uri())] == [f"{tmp_path.as_uri()}/pile"]


def test_caches_that_are_still_written_are_listed(
    team: str, tmp_path: Path, source: Any, cache_path: Path
) -> None:
    """Whoever looks for a harvest that stopped must find it, in a folder and in a bucket."""
    folder = tmp_path / "begun"
    settings = {"identity": IDENTITY, "hooks": source.hooks, "context": source.context}
    writer = CacheWriter(folder, **settings)
    (listed,) = list_caches(tmp_path.as_uri())
    assert (listed.url, listed.state, listed.rows) == (folder.as_uri(), "unfinished", 0)
    _, arrays = next(iter(source.batches(7, 0)))
    writer.write_sequences(**arrays)
    writer.commit()
    writer.close()
    (listed,) = list_caches(tmp_path.as_uri())
    rows = int(arrays["keep"].sum())
    assert (listed.state, listed.rows, listed.context) == ("unfinished", rows, source.context)
    assert (listed.model, listed.hooks) == ("EleutherAI/pythia-160m", tuple(source.hooks))
    assert CacheWriter(folder, **settings).finalize().fingerprint == listed.fingerprint
    (finished,) = list_caches(tmp_path.as_uri())
    assert finished.state == "complete"
    assert (finished.normalization, finished.dataset) == (listed.normalization, listed.dataset)

    claim_for_harvest(open_remote_folder(f"{team}/begun"), HarvestedCache(listed.fingerprint)).take()
    (claimed,) = list_caches(team)
    assert (claimed.state, claimed.fingerprint) == ("unfinished", listed.fingerprint)


@pytest.mark.parametrize("content", [b"{", b'{"identity": {"k": "\\ud800"}, "num_buckets": 1}', None])
def test_a_journal_that_is_none_is_said(tmp_path: Path, content: bytes | None) -> None:
    journal = tmp_path / ".writing" / "journal.json"
    journal.parent.mkdir()
    if content is None:
        os.mkfifo(journal)  # would be read without end
    else:
        journal.write_bytes(content)
    (listed,) = list_caches(tmp_path.as_uri(), patience=PASSING)
    assert listed.state == "unreadable" and "journal.json is" in listed.problem


def test_what_lies_beside_caches_does_not_hide_them(team: str, cache_path: Path) -> None:
    """What a writer left that was killed at its very end, a stray claim, and one that is far too large."""
    Push(cache_path, f"{team}/below/cache").run()
    place = open_remote_folder(team)
    place.put("below/cache/.writing/lock", b"")
    place.put(".writing/x", b"")
    place.put("below/.writing/y", b"")
    (listed,) = list_caches(team, patience=PASSING)
    assert (listed.url, listed.state) == (f"{team}/below/cache", "complete")
    claim_for_harvest(open_remote_folder(f"{team}/below"), HarvestedCache("f" * 64)).take()
    assert [one.state for one in list_caches(team, patience=PASSING)] == ["unfinished", "complete"]
    place.put("below/.harvest.json", b" " * ((16 << 20) + 1))
    assert [one.state for one in list_caches(team, patience=PASSING)] == ["unreadable", "complete"]


def test_odd_names_and_loops_do_not_hide_caches(cache_path: Path, tmp_path: Path) -> None:
    """One of them, anywhere below, ended the listing of a folder."""
    shutil.copytree(cache_path, tmp_path / "deep" / "cache")
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "loop").symlink_to("loop")
        (folder / "here").symlink_to(".")
        (folder / "nothing").symlink_to("nowhere")
        (folder / "two\nlines").mkdir()
        (folder / os.fsdecode(b"\xff")).mkdir()
    found = list_caches(tmp_path.as_uri(), patience=PASSING)
    assert [(one.url, one.state) for one in found] == [(f"{tmp_path.as_uri()}/deep/cache", "complete")]
    (tmp_path / "latest").symlink_to("deep/cache")  # another name for the cache
    names = [one.url.rpartition("/")[2] for one in list_caches(tmp_path.as_uri(), patience=PASSING)]
    assert names == ["cache", "latest"]


def test_a_folder_of_many_names_is_looked_at_once(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty links made 17,000 folders."""
    shutil.copytree(cache_path, tmp_path / "b" / "cache")
    for name, other in ("ab", "ba"):
        (tmp_path / name).mkdir(exist_ok=True)
        for number in range(20):
            (tmp_path / name / str(number)).symlink_to(f"../{other}")
    listings, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listings.append(path) or scandir(path))
    found = list_caches(tmp_path.as_uri(), patience=PASSING)
    assert [one.url for one in found] == [f"{tmp_path.as_uri()}/b/cache"]
    assert len(listings) < 10


def test_a_folder_that_may_not_be_listed_does_not_hide_caches(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found on a disk."""
    shutil.copytree(cache_path, tmp_path / "cache")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = {
        one.url.rpartition("/")[2]: one.state for one in list_caches(tmp_path.as_uri(), patience=PASSING)
    }
    assert found == {"cache": "complete", "lost+found": "unreadable"}
    with pytest.raises(AccessError, match="not allowed"):
        list_caches((tmp_path / "lost+found").as_uri(), patience=PASSING)


def test_what_a_manifest_says_does_not_steer_the_terminal() -> None:
    listed = Listed("s3://b/x\x1b[2J", "complete", None, model="\x1b]0;owned\x07", hooks=("a",))
    assert "\x1b" not in format_listing([listed], "s3://b")


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch"])
def test_a_cache_that_may_not_be_read_is_listed(team: str, cache_path: Path, proxy: Proxy, code: str) -> None:
    """It is there: a list without it would say that nobody has it."""
    Push(cache_path, f"{team}/ours").run()
    Push(cache_path, f"{team}/theirs").run()
    proxy.add("status", path=f"/theirs/{ROOT}", status=403, code=code, times=100)
    ours, theirs = list_caches(team, patience=PASSING)
    assert (ours.state, theirs.state) == ("complete", "unreadable")
    assert code in theirs.problem
