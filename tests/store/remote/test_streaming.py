"""A cache read by its URL: the same rows as from the folder whatever happens, or a clear error."""

import errno
import gc
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from saecache.common.errors import DiskFullError
from saecache.store import ActivationCache, CorruptCacheError, SaecacheError, UsageError, open_cache
from saecache.store.durable import write_all
from saecache.store.manifest import FileInfo
from saecache.store.normalization import NORMALIZATIONS
from saecache.store.remote import Patience, RemoteFolder, open_remote_folder
from saecache.store.remote.downloads.cache import DownloadCache
from saecache.store.remote.downloads.settings import ENOUGH_FILES
from saecache.store.remote.opening import open_remote
from saecache.store.remote.places.failures import AccessError, RemoteChangedError
from saecache.store.remote.shards import RemoteShards

from ...killing import DEADLINE_SECONDS
from .conftest import PASSING
from .proxy import Proxy
from .server import BUCKET, S3Server

HOOK = "resid_post.1"
PLENTY = 1 << 30
PATIENT = Patience()  # where requests are counted: a busy machine must not make one twice
IMPATIENT = replace(Patience(), max_retries=3, max_attempts=2, first_backoff_seconds=0.01)
READ_ALL = """
import sys, pathlib
from saecache.store import open_cache
batches = open_cache(sys.argv[1]).batches("resid_post.1", 50)
pathlib.Path(sys.argv[2]).write_bytes(b"".join(batch.numpy().tobytes() for batch in batches))
"""
OpenHere = Callable[..., ActivationCache]


def upload(cache: Path, location: RemoteFolder) -> None:
    """Every file, the manifest last."""
    files = sorted(file for file in cache.rglob("*") if file.is_file() and file != cache / "zarr.json")
    for file in [*files, cache / "zarr.json"]:
        assert location.put(file.relative_to(cache).as_posix(), file.read_bytes())


@pytest.fixture(scope="session")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_source: Callable[..., Any],
    write_cache: Callable[..., Any],
) -> Path:
    """A cache of many small shards, about 24 for the activations of each hook."""
    path = tmp_path_factory.mktemp("stream") / "cache"
    source = make_source(sequences=600, hooks={HOOK: 24, "mlp_out.0": 17})
    write_cache(path, source, storage={"chunk_rows": 64, "shard_bytes": 16384})
    return path


@pytest.fixture(scope="session")
def uploaded(s3_server: S3Server, folder: Path) -> str:
    """Its URL; no test changes it."""
    url = f"s3://{BUCKET}/streaming/cache"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        upload(folder, open_remote_folder(url))
    return url


@pytest.fixture
def url(uploaded: str, team: str) -> str:
    """The URL, in the environment of a user of the server."""
    return uploaded


@pytest.fixture
def own_url(team: str, folder: Path) -> str:
    """The URL of a cache that the test may change."""
    upload(folder, open_remote_folder(f"{team}/cache"))
    return f"{team}/cache"


@pytest.fixture
def open_here(url: str, tmp_path: Path) -> OpenHere:
    """Opens a remote cache with a local cache of the test's own, and the patience of a test."""

    def open_here(limit_bytes: int = PLENTY, url: str = url, patience: Patience = PASSING) -> ActivationCache:
        local = DownloadCache(tmp_path / "local", limit_bytes)
        return ActivationCache(*open_remote(url, local=local, patience=patience))

    return open_here


def epoch(cache: ActivationCache, number: int = 0, **settings: Any) -> torch.Tensor:
    return torch.cat(list(cache.batches(HOOK, 50, epoch=number, **settings)))


def shard_keys(cache: ActivationCache) -> set[str]:
    return {file.path for file in cache.manifest.files if f"rows/{HOOK}/activations" in file.path}


def fetched(proxy: Proxy) -> Counter[str]:
    """How often each object below ``rows`` and ``heldout`` was read."""
    paths = [seen.path.split("?")[0] for seen in proxy.seen if seen.method == "GET"]
    return Counter(path.split("/cache/")[1] for path in paths if "/c/" in path)


@pytest.mark.parametrize("limit", ["plenty", "less than the data"])
def test_every_method_as_from_the_folder(
    folder: Path, open_here: OpenHere, tmp_path: Path, limit: str
) -> None:
    local = open_cache(folder)
    largest = max(file.size for file in local.manifest.files)
    limit_bytes = PLENTY if limit == "plenty" else 2 * largest
    assert sum(file.size for file in local.manifest.files) > 8 * largest
    remote = open_here(limit_bytes)
    assert (len(remote), remote.hooks, remote.context) == (len(local), local.hooks, local.context)
    assert (remote.fingerprint, remote.provenance) == (local.fingerprint, local.provenance)
    for number in (0, 1, 2):
        assert torch.equal(epoch(remote, number, seed=3), epoch(local, number, seed=3))
    for settings in (
        *({"normalization": kind} for kind in NORMALIZATIONS),
        {"split": "heldout"},
        {"number": 1, "start_batch": 7},
        {"number": 1, "num_rows": 300, "drop_last": True},
        {"sink_ratio": 2.0, "number": 1},
        {"dtype": torch.float16},
    ):
        assert torch.equal(epoch(remote, **settings), epoch(local, **settings)), settings
    sinks: dict[str, Any] = {"hook": HOOK, "sink_ratio": 2.0}
    assert remote.num_batches(50, **sinks) == local.num_batches(50, **sinks)
    rows = np.random.default_rng(0).integers(0, len(local), 200)
    for split in ("train", "heldout"):
        places = rows % local.num_rows(split)
        assert torch.equal(remote.rows(HOOK, places, split), local.rows(HOOK, places, split))
        for got, expected in zip(remote.locate(places, split), local.locate(places, split), strict=True):
            assert np.array_equal(got, expected)
        assert np.array_equal(remote.token_index(split)[:], local.token_index(split)[:])
    assert np.array_equal(remote.tokens[:], local.tokens[:])
    assert np.array_equal(remote.documents[5], local.documents[5])
    for got, expected in (
        (remote.statistics(HOOK).mean, local.statistics(HOOK).mean),
        (remote.statistics(HOOK).second_moment, local.statistics(HOOK).second_moment),
    ):
        assert np.array_equal(got, expected)
    assert DownloadCache(tmp_path / "local", PLENTY).used_bytes() <= limit_bytes


def test_by_its_url_alone(url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("SAECACHE_CACHE_BYTES", "1GiB")
    cache = open_cache(f"{url}/")
    assert cache.path == url
    again = pickle.loads(pickle.dumps(cache))  # as a worker of a data loader gets it
    assert torch.equal(epoch(again), epoch(open_cache(folder)))
    assert DownloadCache(tmp_path / "mine", PLENTY).used_bytes() > 10_000


def test_each_shard_comes_once_for_all_epochs(proxy: Proxy, open_here: OpenHere) -> None:
    cache = open_here(patience=PATIENT)
    epoch(cache)
    assert set(fetched(proxy)) == shard_keys(cache)
    epoch(cache, 1)
    epoch(open_here(patience=PATIENT), 2)
    assert set(fetched(proxy).values()) == {1}
    epoch(open_here(patience=PATIENT), 0, normalization="none")
    assert set(fetched(proxy).values()) == {1}


@pytest.mark.parametrize(("number", "pause"), [(0, 0.0), (1, 0.0), (1, 0.003)])
def test_a_local_cache_smaller_than_the_data_is_not_thrashed(
    proxy: Proxy, open_here: OpenHere, number: int, pause: float
) -> None:
    """Whatever the order of the epoch, every shard is needed for a short time only.

    Behind a slow loop all that is read ahead is in use at once.
    """
    cache = open_here(patience=PATIENT)
    limit = int(0.9 * sum(file.size for file in cache.manifest.files if file.path in shard_keys(cache)))
    small = open_here(limit, patience=PATIENT)
    batches = []
    for batch in small.batches(HOOK, 50, epoch=number):
        batches.append(batch.clone())
        time.sleep(pause)
    expected = torch.cat(batches)
    assert set(fetched(proxy)) == shard_keys(cache)
    assert set(fetched(proxy).values()) == {1}
    assert torch.equal(epoch(small, number), expected)


def test_sixteen_shards_are_enough_for_any_epoch(
    make_source: Callable[..., Any], write_cache: Callable[..., Any], tmp_path: Path
) -> None:
    """As many chunks to a shard as there are with the default sizes."""
    source = make_source(sequences=1500, hooks={HOOK: 24})
    manifest = write_cache(tmp_path / "cache", source, storage={"chunk_rows": 8, "shard_bytes": 16384})
    files = [file for file in manifest.files if f"rows/{HOOK}/activations" in file.path]
    fetched: list[str] = []

    def fetch(file: FileInfo, target: Path, _: Callable[[int], None]) -> None:
        fetched.append(file.path)
        shutil.copyfile(tmp_path / "cache" / file.path, target)

    limit = ENOUGH_FILES * max(file.size for file in files)
    shards = RemoteShards(fetch, manifest, DownloadCache(tmp_path / "local", limit))
    cache = ActivationCache(tmp_path / "cache", manifest, shards)
    assert len(files) > 2.5 * ENOUGH_FILES
    for _ in cache.batches(HOOK, 256, epoch=1):
        pass
    assert len(fetched) == len(files)


def test_downloads_run_ahead_of_the_loop(proxy: Proxy, open_here: OpenHere) -> None:
    cache = open_here()
    batches = cache.batches(HOOK, 10)
    next(batches)
    wanted = len(shard_keys(cache))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(fetched(proxy)) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(fetched(proxy)) == wanted
    batches.close()


def test_an_abandoned_epoch_stops_downloading(proxy: Proxy, open_here: OpenHere) -> None:
    cache = open_here(limit_bytes=140_000)
    batches = cache.batches(HOOK, 10)
    next(batches)
    batches.close()
    assert 1 <= len(fetched(proxy)) < len(shard_keys(cache))


def test_an_abandoned_download_ends_in_the_middle(folder: Path, tmp_path: Path) -> None:
    """A run that is told to stop does not wait for shards that nobody will read; a later reader gets them."""
    begun, local = [], DownloadCache(tmp_path / "local", PLENTY)

    def endless(file: FileInfo, target: Path, on_bytes: Callable[[int], None]) -> None:
        begun.append(file.path)
        target.write_bytes(b"some of it")
        while file.path != paths[0]:
            time.sleep(0.005)
            on_bytes(1)
        target.write_bytes((folder / file.path).read_bytes())

    manifest = open_cache(folder).manifest
    paths = [file.path for file in manifest.files if f"rows/{HOOK}/activations" in file.path]
    shards = RemoteShards(endless, manifest, local)
    with shards.ahead(paths):
        shards.hold(paths[0], lambda: None)
        while len(begun) < 5:
            time.sleep(0.001)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while list((local.folder / "partial").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    paths[0] = paths[1]
    assert shards.hold(paths[1], lambda: None).path.read_bytes() == (folder / paths[1]).read_bytes()


FAULTS: dict[str, dict[str, Any]] = {
    "a burst of 500": {"kind": "status", "status": 500, "times": 12},
    "a burst of 503": {"kind": "status", "status": 503, "code": "SlowDown", "times": 12},
    "resets in the body": {"kind": "reset", "after": 700, "times": 6},
    "truncated bodies": {"kind": "truncate", "after": 700, "times": 6},
    "short bodies": {"kind": "short", "after": 700, "times": 3},
    "stalls": {"kind": "stall", "after": 700, "times": 3, "seconds": 20},
    "flipped bytes": {"kind": "flip", "after": 1500, "times": 3},
    "wrong ETags": {"kind": "etag", "times": 50},
    "lost answers": {"kind": "lost_answer", "times": 6},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_do_not_show(proxy: Proxy, open_here: OpenHere, folder: Path, fault: str) -> None:
    settings = dict(FAULTS[fault])
    added = proxy.add(settings.pop("kind"), method="GET", path="/c/[0-9]", **settings)
    assert torch.equal(epoch(open_here()), epoch(open_cache(folder)))
    assert added.met >= 3


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not allowed": ({"kind": "status", "status": 403, "code": "AccessDenied"}, AccessError, "not allowed"),
    "expired credentials": (
        {"kind": "status", "status": 400, "code": "ExpiredToken"}, AccessError, "have expired",
    ),
    "always the same wrong byte": ({"kind": "flip", "after": 900}, CorruptCacheError, "c/5/0"),
    "a missing object": (
        {"kind": "status", "status": 404, "code": "NoSuchKey"}, CorruptCacheError, "is missing",
    ),
    "a server that never recovers": ({"kind": "status", "status": 500}, SaecacheError, "kept failing"),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_faults_that_stay_are_told_and_end_the_epoch(
    proxy: Proxy, open_here: OpenHere, folder: Path, what: str
) -> None:
    settings, error, message = ERRORS[what]
    proxy.add(**settings, method="GET", path=f"rows/{HOOK}/activations/c/5/0", times=10_000)
    cache, expected = open_here(patience=IMPATIENT), epoch(open_cache(folder))
    got: list[torch.Tensor] = []
    with pytest.raises(error, match=message):
        got.extend(cache.batches(HOOK, 50))
    assert torch.equal(torch.cat(got), expected[: 50 * len(got)]), "what came before the error is right"
    proxy.clear()
    assert torch.equal(epoch(cache), expected), "the same object goes on once it is mended"


def test_a_full_local_disk(
    folder: Path, open_here: OpenHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads that nobody uses make room; where there are none, it is said and the disk is left clean."""
    room = 20_000  # bytes of the disk
    local = tmp_path / "local"

    def write(file: Any, block: Any) -> None:
        used = sum(found.stat().st_size for found in local.rglob("*/*") if found.is_file())
        if used + len(block) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, block)

    monkeypatch.setattr("saecache.store.remote.places.file_blocks.write_all", write)
    cache, rows = open_here(), open_cache(folder).rows(HOOK, range(0, 6000, 600))
    assert torch.equal(torch.cat([cache.rows(HOOK, [row]) for row in (0, 0)]), rows[[0, 0]])
    room = 1000
    with pytest.raises(DiskFullError, match="SAECACHE_CACHE_DIR"):
        cache.rows(HOOK, [3000])
    assert not list((local / "partial").iterdir())
    room = 20_000
    for place, row in enumerate(range(0, 6000, 600)):
        cache = open_here()  # nothing is held
        assert torch.equal(cache.rows(HOOK, [row])[0], rows[place])
        del cache
    assert DownloadCache(local, PLENTY).used_bytes() <= room


def test_a_damaged_local_copy_is_fetched_again(open_here: OpenHere, folder: Path, tmp_path: Path) -> None:
    expected = epoch(open_cache(folder))
    epoch(open_here())
    shards = sorted((tmp_path / "local" / "shards").rglob("*/*"), key=lambda path: path.stat().st_size)
    for path, place in ((shards[-1], 100), (shards[-2], -3), (shards[-3], 900)):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
    assert torch.equal(epoch(open_here()), expected)


def test_removed_while_it_is_read(open_here: OpenHere, own_url: str, folder: Path) -> None:
    """What is on this machine is still read; what is not is told, and nothing else is handed out."""
    location, expected = open_remote_folder(own_url), epoch(open_cache(folder))
    cache = open_here(url=own_url)
    epoch(cache)
    batches = cache.batches(HOOK, 50)
    got = [next(batches)]
    location.delete(["zarr.json"])
    location.delete([info.key for info in location.objects()])
    with pytest.raises(RemoteChangedError, match="was removed while"):
        got.extend(cache.batches("mlp_out.0", 50, normalization="none"))
    got.extend(batches)
    assert torch.equal(torch.cat(got), expected)
    with pytest.raises(UsageError, match="no cache at"):
        open_here(url=own_url)


def test_replaced_while_it_is_read(open_here: OpenHere, own_url: str, cache_path: Path) -> None:
    cache = open_here(url=own_url)
    upload(cache_path, open_remote_folder(own_url))
    with pytest.raises(RemoteChangedError, match="replaced by another cache"):
        epoch(cache)


def test_a_limit_below_two_shards_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SAECACHE_CACHE_BYTES to at least"):
        open_remote(url, local=DownloadCache(tmp_path, 1000))


def test_two_processes_share_the_downloads(proxy: Proxy, url: str, folder: Path, tmp_path: Path) -> None:
    """Both read the whole cache at once; each object crosses the network once."""
    environment = {**os.environ, "SAECACHE_CACHE_DIR": str(tmp_path / "local")}
    children = [
        subprocess.Popen([sys.executable, "-c", READ_ALL, url, tmp_path / f"rows{number}"], env=environment)
        for number in range(2)
    ]
    assert [child.wait(DEADLINE_SECONDS) for child in children] == [0, 0]
    counts = fetched(proxy)
    assert set(counts.values()) == {1}
    expected = epoch(open_cache(folder)).numpy().tobytes()
    assert [(tmp_path / f"rows{number}").read_bytes() for number in range(2)] == [expected] * 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told(open_here: OpenHere) -> None:
    """It would wait forever for threads that it does not have."""
    cache = open_here()
    next(cache.batches(HOOK, 50))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            next(cache.batches(HOOK, 50))
        except UsageError as error:
            status = 0 if "'spawn'" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_files_that_are_held_do_not_grow_with_the_cache(open_here: OpenHere, tmp_path: Path) -> None:
    folder = str(tmp_path / "local" / "shards")

    def held() -> int:
        return sum(opened.path.startswith(folder) for opened in psutil.Process().open_files())

    cache = open_here()
    for hook in cache.hooks:
        for split in ("train", "heldout"):
            for _ in cache.batches(hook, 50, split=split, normalization="none"):
                assert held() <= 2 * 64 + 32 + 16 + 16  # in use, ahead, overtaken, just being mapped
    assert held() > 2 * 32
    del cache
    deadline = time.monotonic() + DEADLINE_SECONDS
    while held() and time.monotonic() < deadline:  # threads may be at their last download
        gc.collect()
        time.sleep(0.01)
    assert held() == 0


@pytest.fixture(autouse=True)
def _nothing_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    yield


def test_python_ends_quietly_with_an_unfinished_iterator(url: str, tmp_path: Path) -> None:
    script = """
import sys, saecache
batches = saecache.open_cache(sys.argv[1]).batches("resid_post.1", rows_per_batch=8)
next(batches)
"""
    environment = {**os.environ, "SAECACHE_CACHE_DIR": str(tmp_path / "local")}
    command = [sys.executable, "-c", script, url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
