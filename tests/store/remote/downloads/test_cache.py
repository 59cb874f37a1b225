"""One copy per machine, bounded, whole or absent: whatever several threads and processes do at once."""

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from saecache.common.errors import DiskFullError
from saecache.store import SaecacheError, UsageError
from saecache.store.remote.downloads.cache import DownloadCache
from saecache.store.remote.downloads.settings import check_limit, default_folder, open_download_cache

from ....killing import DEADLINE_SECONDS
from ...test_sizes import no_waiting

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
SIZE = 1000
processes = multiprocessing.get_context("fork")


def content(number: int) -> bytes:
    return bytes([number % 256]) * (SIZE - 8) + number.to_bytes(8, "little")


def digest(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def fetcher(number: int, log: Path | None = None, seconds: float = 0.0) -> Callable[[Path], None]:
    """Writes file ``number`` in two halves, and notes that it did."""

    def fetch(path: Path) -> None:
        if log is not None:
            with log.open("ab", buffering=0) as file:
                file.write(b"%d\n" % number)
        with path.open("wb", buffering=0) as file:
            file.write(content(number)[: SIZE // 2])
            time.sleep(seconds)
            file.write(content(number)[SIZE // 2 :])

    return fetch


def no_fetch(path: Path) -> None:
    raise AssertionError("it is here already")


def hold(local: DownloadCache, number: int, fetch: Callable[[Path], None] | None = None) -> bytes:
    held = local.hold(digest(number), SIZE, fetch or fetcher(number))
    return held.path.read_bytes()


def is_here(local: DownloadCache, number: int) -> bool:
    return local.path_of(digest(number)).exists()


@pytest.fixture
def local(tmp_path: Path) -> DownloadCache:
    return DownloadCache(tmp_path / "local", 3 * SIZE)


def test_a_file_is_fetched_once(local: DownloadCache) -> None:
    assert hold(local, 1) == content(1)
    assert hold(local, 1, no_fetch) == content(1)
    assert hold(DownloadCache(local.folder, 3 * SIZE), 1, no_fetch) == content(1)


def test_the_least_recently_used_file_goes_first(local: DownloadCache) -> None:
    for number in (1, 2, 3):
        hold(local, number)
        os.utime(local.path_of(digest(number)), (number, number))  # clocks of file systems may be coarse
    hold(local, 1, no_fetch)
    hold(local, 4)
    assert [is_here(local, number) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert local.used_bytes() == 3 * SIZE


def test_a_held_file_stays_whoever_wants_room(local: DownloadCache) -> None:
    held = local.hold(digest(1), SIZE, fetcher(1))
    child = processes.Process(target=_hold_many, args=(local.folder, 3 * SIZE, 2, 12))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert held.path.read_bytes() == content(1)
    held.release()
    for number in (20, 21, 22):
        hold(local, number)
    assert not is_here(local, 1)


def _hold_many(folder: Path, limit: int, first: int, last: int) -> None:
    local = DownloadCache(folder, limit)
    for number in range(first, last):
        assert hold(local, number) == content(number)
        assert local.used_bytes() <= limit


def test_what_is_mapped_is_read_to_its_end_after_it_was_removed(local: DownloadCache) -> None:
    with local.hold(digest(1), SIZE, fetcher(1)).path.open("rb") as file:
        for number in (2, 3, 4):
            hold(local, number)
        assert not is_here(local, 1)
        assert file.read() == content(1)


def test_files_held_at_once_may_exceed_the_limit(local: DownloadCache) -> None:
    held = [local.hold(digest(number), SIZE, fetcher(number)) for number in range(6)]
    assert [file.path.read_bytes() for file in held] == [content(number) for number in range(6)]
    assert local.used_bytes() == 6 * SIZE
    for file in held:
        file.release()
    hold(local, 7)
    assert local.used_bytes() == 3 * SIZE


@pytest.mark.parametrize("error", [SaecacheError("no"), OSError(errno.EIO, "no"), KeyboardInterrupt()])
def test_a_failed_download_leaves_nothing(local: DownloadCache, error: BaseException) -> None:
    def fetch(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    expected = SaecacheError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="SAECACHE_CACHE_DIR" if isinstance(error, OSError) else None):
        hold(local, 1, fetch)
    assert local.used_bytes() == 0
    assert not list((local.folder / "partial").iterdir())
    assert hold(local, 1) == content(1)


def test_a_full_disk_is_emptied_of_what_nobody_uses(local: DownloadCache) -> None:
    hold(local, 1)
    attempts = []

    def fetch(path: Path) -> None:
        attempts.append(is_here(local, 1))
        if len(attempts) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fetcher(2)(path)

    assert hold(local, 2, fetch) == content(2)
    assert attempts == [True, False]


def test_a_full_disk_with_nothing_to_remove_is_said(local: DownloadCache) -> None:
    kept = local.hold(digest(1), SIZE, fetcher(1))

    def fetch(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="SAECACHE_CACHE_DIR"):
        hold(local, 2, fetch)
    assert kept.path.read_bytes() == content(1)


def test_a_file_of_the_wrong_size_is_fetched_again(local: DownloadCache) -> None:
    """A machine that lost power can leave a file that is empty or short."""
    hold(local, 1)
    local.path_of(digest(1)).write_bytes(b"")
    assert hold(local, 1) == content(1)


def test_threads_and_processes_share_one_download(local: DownloadCache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [
        processes.Process(target=_hold_with_threads, args=(local.folder, log), daemon=True) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE_SECONDS)
        assert child.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == [0, 1, 2]


def _hold_with_threads(folder: Path, log: Path) -> None:
    local = DownloadCache(folder, 100 * SIZE)
    wrong = []

    def work(number: int) -> None:
        if hold(local, number, fetcher(number, log, seconds=0.1)) != content(number):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number % 3,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_readers_of_one_small_cache_never_see_wrong_bytes(local: DownloadCache) -> None:
    """More files than fit, from four processes at once: every one that is handed out is whole."""
    children = [processes.Process(target=_read_at_random, args=(local.folder, seed)) for seed in range(4)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        assert local.used_bytes() <= 3 * SIZE + 4 * SIZE, "the limit and what is held at the moment"
        time.sleep(0.005)
    assert [child.exitcode for child in children] == [0] * 4
    hold(local, 100)
    assert local.used_bytes() <= 3 * SIZE


def _read_at_random(folder: Path, seed: int) -> None:
    local = DownloadCache(folder, 3 * SIZE)
    for step in range(60):
        number = (step * step + seed) % 7
        held = local.hold(digest(number), SIZE, fetcher(number))
        assert held.path.read_bytes() == content(number)
        held.release()


def test_kill_9_of_a_download(local: DownloadCache, tmp_path: Path) -> None:
    """Whoever wants the file next fetches all of it; room that the dead one had taken comes back."""
    for number in range(5):
        log = tmp_path / f"log{number}"
        child = processes.Process(
            target=hold, args=(local, number, fetcher(number, log, seconds=DEADLINE_SECONDS))
        )
        child.start()
        while not log.exists():
            time.sleep(0.001)
        time.sleep(0.002 * number)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not is_here(local, number)
        if number % 2:
            assert hold(local, number) == content(number)
    for number in range(10, 14):
        hold(local, number)
    assert local.used_bytes() == 3 * SIZE
    assert not list((local.folder / "partial").iterdir())


def test_making_room_looks_at_the_files_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = DownloadCache(tmp_path, 100 * SIZE)
    looks = 0
    look = DownloadCache._remove_down_to

    def counted(self: DownloadCache, wanted: int) -> int:
        nonlocal looks
        looks += 1
        return look(self, wanted)

    monkeypatch.setattr(DownloadCache, "_remove_down_to", counted)
    for number in range(300):
        hold(local, number)
    assert local.used_bytes() <= 100 * SIZE
    assert looks < 60


def test_folder_and_limit_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAECACHE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "saecache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "saecache"
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "mine"))
    for text, expected in (("200GB", 200 * 10**9), ("64GiB", 64 << 30), ("1_000_000", 10**6)):
        monkeypatch.setenv("SAECACHE_CACHE_BYTES", text)
        local = open_download_cache()
        assert (local.folder, local.limit_bytes) == (tmp_path / "mine", expected)
    monkeypatch.setenv("SAECACHE_CACHE_BYTES", "lots")
    with pytest.raises(UsageError, match="200GB"):
        open_download_cache()
    monkeypatch.delenv("SAECACHE_CACHE_BYTES")
    assert 0 < open_download_cache().limit_bytes < 1 << 60
    monkeypatch.setenv("SAECACHE_CACHE_BYTES", "5000")
    assert open_download_cache().limit_bytes == 5000
    with pytest.raises(UsageError, match="SAECACHE_CACHE_BYTES to at least 6000"):
        check_limit(open_download_cache(), 3000, "s3://b/c")


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="SAECACHE_CACHE_DIR"):
        open_download_cache()


@pytest.mark.parametrize("place", ["the file", "a file to remove", "the download"])
def test_a_fifo_in_the_folder_does_not_make_anybody_wait(local: DownloadCache, place: str) -> None:
    """To open one waits until another process opens its other end."""
    hold(local, 1)
    if place == "the download":
        os.mkfifo(local.folder / "partial" / f"{digest(4)}-{SIZE}")
    else:
        path = local.path_of(digest(4 if place == "the file" else 5))
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        os.utime(path, (0, 0))  # the first to be removed
    with no_waiting(), pytest.raises(SaecacheError, match=r"cannot be used .not a regular file but a FIFO"):
        for number in (4, 2, 3):
            hold(local, number)


def test_a_fifo_in_place_of_the_record_of_bytes(local: DownloadCache) -> None:
    """Reading it waited for ever, with the lock that all processes want."""
    hold(local, 1)
    (local.folder / "room").unlink()
    os.mkfifo(local.folder / "room")
    with no_waiting(), pytest.raises(SaecacheError, match=r"not a regular file but a FIFO: .*room\)"):
        hold(local, 4)


@pytest.mark.parametrize("name", ["room.lock", f"locks/{digest(4)[:3]}"])
def test_a_fifo_as_a_lock_is_a_lock(local: DownloadCache, name: str) -> None:
    (local.folder / name).unlink(missing_ok=True)
    os.mkfifo(local.folder / name)
    with no_waiting():
        assert hold(local, 4) == content(4)
        with pytest.raises(Timeout), FileLock(local.folder / name), FileLock(local.folder / name, timeout=0):
            pass


def test_a_record_of_bytes_that_is_no_number(local: DownloadCache) -> None:
    hold(local, 1)
    for damaged in (b"", b"many", b"1" * 5000):
        (local.folder / "room").write_bytes(damaged)
        local.discard(digest(4))
        hold(local, 4)
        assert (local.folder / "room").read_bytes() == str(2 * SIZE).encode()


@pytest.mark.parametrize("name", ["shards/.DS_Store", "partial/x-²"])
def test_stray_files_in_the_folder_are_left_alone(local: DownloadCache, name: str) -> None:
    hold(local, 1)
    (local.folder / "room").unlink()  # the files are counted
    (local.folder / name).write_bytes(b"stray")
    assert hold(local, 4) == content(4)
    assert local.used_bytes() == 2 * SIZE


@pytest.mark.parametrize("name", ["room", f"partial/{digest(4)}-{SIZE}"])
@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_nothing_is_written_through_a_link(
    local: DownloadCache, tmp_path: Path, name: str, there: bool
) -> None:
    """Several users may share the folder."""
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.write_bytes(b"mine")
    (local.folder / name).symlink_to(elsewhere)
    assert hold(local, 4) == content(4)
    assert hold(local, 2) == content(2)
    assert elsewhere.read_bytes() == b"mine" if there else not elsewhere.exists()
