"""A cache goes to a real bucket and comes back: the same bytes, nothing moved twice, nothing half visible."""

from collections.abc import Callable
from pathlib import Path

import pytest

from saecache.store import verify_cache
from saecache.store.remote import open_location
from saecache.store.remote.checking import verify_remote
from saecache.store.remote.contents import PROVENANCE
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(params=["s3", "file", "memory"])
def url(request: pytest.FixtureRequest, team: str, tmp_path: Path) -> str:
    return {
        "s3": f"{team}/c",
        "file": f"file://{tmp_path}/bucket/c",
        "memory": f"memory://{tmp_path.name}/c",
    }[request.param]


def test_there_and_back(url: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    push = Push(cache_path, url)
    planned = push.plan()
    assert planned.dry_run
    assert planned.moved_objects == planned.objects - 1
    assert not list(open_location(url).objects())
    done = push.run()
    assert not done.dry_run
    assert {info.key for info in open_location(url).objects()} == {*contents(cache_path), PROVENANCE}
    assert Push(cache_path, url).run().moved_objects == 0

    pulled = Pull(url, tmp_path / "copy").run()
    assert pulled.moved_objects == pulled.objects
    assert contents(tmp_path / "copy") == contents(cache_path)
    assert (tmp_path / "copy" / PROVENANCE).read_bytes() == (cache_path / PROVENANCE).read_bytes()
    assert verify_cache(tmp_path / "copy").ok
    assert Pull(url, tmp_path / "copy").run().moved_objects == 0

    assert verify_remote(url).ok
    assert verify_remote(url, quick=True).ok
    removed = Removal(url).run()
    assert (removed.complete, removed.objects) == (True, done.objects + 0)
    assert not list(open_location(url).objects())
