"""A page of somebody else instead of a listing is an error, whoever asks: every place looked empty."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from saecache.store import SaecacheError, open_cache
from saecache.store.remote import Patience, RemoteFolder, open_remote_folder
from saecache.store.remote.cache_objects import read_root
from saecache.store.remote.places.failures import RemoteError
from saecache.store.remote.push import Push
from saecache.store.remote.removal import Removal
from saecache.store.remote.team import find_cache, list_caches

from ..conftest import PASSING
from ..proxy import Proxy
from ..test_commands import run

LISTINGS = "list-type"
HASTY = replace(Patience(), max_retries=2, first_backoff_seconds=0.01)  # for what lasts and comes at once
Ask = Callable[[str, Path], object]
ASKING: dict[str, Ask] = {
    "ls": lambda url, _: list_caches(url, patience=HASTY),
    "team": lambda url, _: find_cache("0" * 64, [url], patience=HASTY),
    "info": lambda url, _: read_root(open_remote_folder(url, HASTY)),
    "push": lambda url, path: Push(path, url, patience=HASTY).plan(),
    "objects": lambda url, _: open_remote_folder(url, HASTY).objects(),
    "folders": lambda url, _: open_remote_folder(url, HASTY).folders(),
    "some objects": lambda url, _: open_remote_folder(url, HASTY).child("rows").objects(most=1),
}


@pytest.mark.parametrize("page", ["page", "document"])
@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_a_page_that_lasts_is_an_error_that_names_place_and_answer(
    proxy: Proxy, team: str, cache_path: Path, ask: Ask, page: str
) -> None:
    met = proxy.add(page, path=LISTINGS, times=10**6)
    with pytest.raises(RemoteError) as caught:
        ask(f"{team}/c", cache_path)
    assert met.met
    assert f"{team}/c" in str(caught.value)
    assert "answers with a page of text/html instead of a listing" in str(caught.value)
    assert "Please log in" not in str(caught.value)


def test_an_answer_of_nothing_that_lasts(proxy: Proxy, team: str, cache_path: Path) -> None:
    proxy.add("empty", path=LISTINGS, times=10**6)
    for name, ask in ASKING.items():
        with pytest.raises(RemoteError, match=f"listing {team}/c(/rows)?: .* answers with nothing instead"):
            pytest.fail(f"{name}: {ask(f'{team}/c', cache_path)}")


def test_the_commands_say_so(proxy: Proxy, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saecache.store.remote.places.by_url.Patience", lambda: HASTY)
    proxy.add("page", path=LISTINGS, times=10**6)
    for command in ("ls", "info"):
        told = run(command, team, status=1)
        assert f"{team}: " in told.stderr
        assert "instead of a listing" in told.stderr
    assert "nothing is removed" in run("rm", team, "--yes", status=2).stderr
    with pytest.raises(SaecacheError, match="instead of a listing"):
        open_cache(team)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_page_that_passes_does_not_show(proxy: Proxy, team: str, times: int) -> None:
    location = open_remote_folder(team, PASSING)
    location.put("a/x", b"1")
    met = proxy.add("page", path=LISTINGS, times=times)
    assert [info.key for info in location.objects()] == ["a/x"]
    assert met.met == times
    again = proxy.add("page", path=LISTINGS, times=times)
    assert location.folders() == (["a"], [])
    assert again.met == times


def test_a_page_for_everything(proxy: Proxy, team: str) -> None:
    proxy.add("page", times=10**6)
    for ask in (RemoteFolder.objects, RemoteFolder.folders):
        with pytest.raises(RemoteError, match=r"a page of text/html instead .*Check the endpoint"):
            ask(open_remote_folder(team, HASTY))
    with pytest.raises(SaecacheError, match=team):
        read_root(open_remote_folder(team, HASTY))


def test_what_is_empty_is_empty(proxy: Proxy, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one who may list a part of the bucket only, and without a signature."""
    assert list_caches(team) == []
    assert not any("Signature" in seen.path for seen in proxy.seen), "the question of one's own is not signed"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.upstream)
    assert list_caches(team, patience=Patience()) == []
    with pytest.raises(SaecacheError, match="there is nothing there"):
        read_root(open_remote_folder(team))
    with pytest.raises(SaecacheError, match="nothing is removed"):
        Removal(team)


@pytest.mark.parametrize("times", [1, 10**6])
def test_where_the_question_of_ones_own_is_not_answered(proxy: Proxy, team: str, times: int) -> None:
    """It is asked again; where there is never an answer to it, the library's listing is all there is."""
    location = open_remote_folder(team, HASTY)
    met = proxy.add("lost_answer", path="list-type.*delimiter", times=times)
    assert location.objects() == []
    assert met.met == min(times, 3)
    proxy.clear()
    proxy.add("lost_answer", path="list-type.*delimiter", times=1)
    proxy.add("page", path=LISTINGS, times=10**6)
    with pytest.raises(RemoteError, match="instead of a listing"):
        location.objects()
