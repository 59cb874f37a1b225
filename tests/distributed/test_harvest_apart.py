"""A harvest into a bucket by machines that share no folder: the bytes of one process, whatever happens."""

import json
import random
import shutil
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest import run as run_here
from saecache.harvest.job import phases
from saecache.store.remote import open_remote_folder
from saecache.store.remote.delivery import BucketDelivery
from saecache.store.remote.places.failures import RemoteChangedError
from saecache.store.remote.removal import Removal
from saecache.store.remote.verify import verify_remote
from saecache.store.writing.journal import Journal, journal_bytes, parse_journal

from ..store.remote.proxy import Proxy
from ..store.remote.server import S3Server
from .harvesting import Harvest, Mishap, run
from .test_harvest import STEPS, alone, base, bytes_at, config, processes

__all__ = ["alone", "base", "config", "processes"]  # fixtures


@pytest.fixture
def harvest(config: HarvestConfig, tmp_path: Path, s3_server: S3Server, team: str) -> Harvest:
    """By processes on two machines."""
    scratch, environment = tmp_path / "scratch", s3_server.environment()
    return Harvest(config, f"{team}/cache", tmp_path, scratch, nodes=2, environment=environment)


def with_nodes(harvest: Harvest, nodes: int) -> Harvest:
    return Harvest(**{**vars(harvest), "nodes": nodes})


def complete(processes: ForkServerContext, size: int, harvest: Harvest) -> None:
    for rank, ended in enumerate(run(processes, size, harvest)):
        assert ended.status == 0, f"process {rank}: {ended.errors[-3000:]}"


def journal_at(url: str) -> Journal:
    return parse_journal(open_remote_folder(url).get(".harvest/journal.json", 1 << 24))


def check_nothing_left(harvest: Harvest) -> None:
    assert harvest.scratch is not None
    assert [path for path in harvest.scratch.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("size", "nodes"), [(2, 2), (4, 2), (3, 3)])
def test_the_bytes_are_those_of_one_process(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str], size: int, nodes: int
) -> None:
    harvest = with_nodes(harvest, nodes)
    complete(processes, size, harvest)
    assert bytes_at(harvest.out) == alone
    assert verify_remote(harvest.out).ok
    said = [harvest.said_by(rank).read_text() for rank in range(size)]
    assert "share no scratch folder" in said[0] and not any("planned:" in text for text in said[1:])
    check_nothing_left(harvest)
    complete(processes, size, harvest)  # a finished one is left as it is
    assert bytes_at(harvest.out) == alone


def test_killed_processes_are_taken_over_by_whoever_comes(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str]
) -> None:
    """The machines that come have nothing of what those before them had on their disks."""
    assert harvest.scratch is not None
    done = [0]
    for size, rank, steps in ((4, 2, STEPS), (2, 0, STEPS), (3, 1, None), (4, 0, None)):
        ended = run(processes, size, harvest, Mishap("kill", rank, steps=steps))
        assert ended[rank].status == -9
        assert all(other.status != 0 for other in ended)
        journal = journal_at(harvest.out)
        assert journal.train_rows + journal.heldout_rows == sum(piece.rows for piece in journal.pieces)
        done.append(journal.sequences)
        shutil.rmtree(harvest.scratch)
    assert done[0] < done[1] < done[2] < done[3] == done[4]
    complete(processes, 1, with_nodes(harvest, 1))
    assert bytes_at(harvest.out) == alone
    check_nothing_left(harvest)


def test_kills_at_random_moments(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str], team: str
) -> None:
    moments, began = random.Random(int(time.time())), time.monotonic()
    complete(processes, 2, Harvest(**{**vars(harvest), "out": f"{team}/undisturbed"}))
    seconds = time.monotonic() - began
    for _ in range(3):
        size = moments.choice([2, 3, 4])
        mishap = Mishap("kill", moments.randrange(size), seconds=moments.uniform(0.1, 1.0) * seconds)
        run(processes, size, harvest, mishap)
    complete(processes, moments.choice([2, 3]), harvest)
    assert bytes_at(harvest.out) == alone


def test_what_a_killed_process_has_left_on_its_machine_goes(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str]
) -> None:
    ended = run(processes, 4, harvest, Mishap("kill", 3, steps=STEPS))
    assert ended[3].status == -9
    assert harvest.scratch is not None
    assert (harvest.scratch / "node1" / ".writing" / "process.3").is_dir()
    complete(processes, 2, harvest)
    assert bytes_at(harvest.out) == alone
    check_nothing_left(harvest)


def test_a_kill_after_the_manifest_leaves_pieces_that_the_next_run_removes(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str]
) -> None:
    complete(processes, 2, harvest)
    place = open_remote_folder(harvest.out)
    fingerprint = json.loads(place.get("zarr.json", 1 << 24))["attributes"]["saecache"]["fingerprint"]
    place.put(".harvest/rows/0123456789abcdef_token", b"rows")
    place.put(".harvest/journal.json", b"{}")
    place.put(".harvest.json", json.dumps({"fingerprint": fingerprint}).encode())
    assert verify_remote(harvest.out).ok
    complete(processes, 2, harvest)
    assert bytes_at(harvest.out) == alone


def test_an_extended_cache_has_the_bytes_of_one_process(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str], base: Path
) -> None:
    extending = Harvest(**{**vars(harvest), "extend": base})
    ended = run(processes, 3, extending, Mishap("kill", 1, copied=4))
    assert ended[1].status == -9
    assert journal_at(harvest.out).progress["phase"] == "copying"
    complete(processes, 2, extending)
    assert bytes_at(harvest.out) == alone


def test_rows_that_are_damaged_on_the_way_are_read_again(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str], proxy: Proxy, s3_server: S3Server
) -> None:
    through = Harvest(**{**vars(harvest), "environment": s3_server.environment(proxy.url)})
    flipped = proxy.add("flip", method="GET", path=r"/\.harvest/rows/.*_(token|hook)", times=3, skip=2)
    cut = proxy.add("truncate", method="GET", path=r"/\.harvest/rows/.*_(index|ids)", times=2)
    complete(processes, 2, through)
    assert (flipped.met, cut.met) == (3, 2)
    assert bytes_at(harvest.out) == alone


def test_a_harvest_that_all_saw_does_not_go_on_where_some_do_not(
    processes: ForkServerContext, harvest: Harvest, alone: dict[str, str]
) -> None:
    assert harvest.scratch is not None
    together = with_nodes(Harvest(**{**vars(harvest), "scratch": harvest.scratch / "node0"}), 1)
    run(processes, 2, together, Mishap("kill", 1, steps=STEPS))
    ended = run(processes, 2, harvest)
    assert [one.status for one in ended] == [2, 2]
    assert "begun by processes that all saw this folder" in ended[0].errors
    complete(processes, 3, together)
    assert bytes_at(harvest.out) == alone


def test_an_unfinished_one_can_be_removed(processes: ForkServerContext, harvest: Harvest) -> None:
    run(processes, 2, harvest, Mishap("kill", 1, steps=STEPS))
    assert any(key.startswith(".harvest/rows/") for key in bytes_at(harvest.out))
    removal = Removal(harvest.out)
    assert removal.plan().foreign == 0
    removal.run()
    assert bytes_at(harvest.out) == {}


def test_a_run_that_still_commits_while_another_one_begins(
    processes: ForkServerContext, harvest: Harvest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the later one would go on in the text from one commit, and with the rows of another."""
    run(processes, 2, harvest, Mishap("kill", 1, steps=STEPS))
    settle = phases.settle_batch_size

    def meanwhile(*arguments: Any) -> None:
        settle(*arguments)
        journal = journal_at(harvest.out)
        later = journal.model_copy(update={"progress": journal.progress | {"tokens": 1}})
        open_remote_folder(harvest.out).put(".harvest/journal.json", journal_bytes(later))

    monkeypatch.setattr(phases, "settle_batch_size", meanwhile)
    with pytest.raises(RemoteChangedError, match="run the same command again"):
        run_here(harvest.config, harvest.out, scratch=harvest.scratch)


def test_of_two_runs_at_once_the_later_one_goes_on(harvest: Harvest, tmp_path: Path) -> None:
    """The other one notices when it commits."""
    first, second = (BucketDelivery(tmp_path, harvest.out).pieces() for _ in range(2))
    first.take_over()
    first.write_journal(b"one")
    second.take_over()
    assert second.read_journal() == b"one"
    with pytest.raises(RemoteChangedError, match="another run of this harvest"):
        first.write_journal(b"two")
    second.write_journal(b"two")
    assert first.read_journal() == b"two"
