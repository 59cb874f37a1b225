"""A harvest by several processes: the same bytes for any number of them, whatever happens to one."""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from saecache.harvest import HarvestConfig
from saecache.store import inspect_output, open_cache, verify_cache
from saecache.store.remote import open_remote_folder
from saecache.store.writing.journal import read_journal

from ..store.remote.server import S3Server
from .harvesting import Harvest, Mishap, into_folder, run
from .processes import SECONDS, forkserver, free_port, says_lost

MakeConfig = Callable[..., HarvestConfig]
# After so many forwards of a process a commit is recorded, however slow the disk is: the first round asks for
# it, rows are at most two steps behind, and each half of a commit takes one meeting.
STEPS = 9


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return forkserver()


@pytest.fixture(scope="module")
def config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    """Several hooks, documents of very different lengths, of which some are held out, and sinks left out."""
    folder = tmp_path_factory.mktemp("ragged")
    lines = (json.dumps({"text": f"document {i} says " + "so it goes, " * (i % 90)}) for i in range(200))
    (folder / "a.jsonl").write_text("\n".join(lines))
    return make_config(
        text={"kind": "files", "paths": str(folder)},
        hooks=["resid_post.1", "mlp_out.2", "attn_out.0"],
        num_tokens=32_000,
        batch_size=32,
        commit_seconds=0.0,
        selection={"sink_ratio": 1.5},
        storage={"chunk_rows": 64, "shard_bytes": 3 << 14},
    )


@pytest.fixture(scope="module")
def alone(
    processes: ForkServerContext, config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    path = tmp_path_factory.mktemp("alone") / "cache"
    assert run(processes, 1, into_folder(config, path))[0].status == 0
    return contents(path)


def contents(cache: Path) -> dict[str, str]:
    """The digest of every file but those that hold times."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    names = {path.relative_to(cache).as_posix(): path for path in sorted(files)}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith("provenance/")
    }


def bytes_at(url: str) -> dict[str, str]:
    """The same of the objects at a URL."""
    location = open_remote_folder(url)
    return {
        info.key: hashlib.sha256(location.get(info.key, 1 << 24)).hexdigest()
        for info in location.objects()
        if not info.key.startswith("provenance/")
    }


def complete(processes: ForkServerContext, size: int, config: HarvestConfig, path: Path) -> None:
    for rank, ended in enumerate(run(processes, size, into_folder(config, path))):
        assert ended.status == 0, f"process {rank}: {ended.errors[-3000:]}"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_bytes_are_those_of_one_process(
    processes: ForkServerContext, config: HarvestConfig, alone: dict[str, str], tmp_path: Path, size: int
) -> None:
    path = tmp_path / "cache"
    complete(processes, size, config, path)
    assert contents(path) == alone
    assert verify_cache(path).ok
    said = [into_folder(config, path).said_by(rank).read_text() for rank in range(size)]
    assert "planned:" in said[0] and not any("planned:" in text for text in said[1:])
    complete(processes, size, config, path)  # a finished one is left as it is
    assert contents(path) == alone


def test_killed_processes_are_taken_over_by_whoever_comes(
    processes: ForkServerContext, config: HarvestConfig, alone: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    mishaps = [(3, 2, STEPS), (2, 0, STEPS), (2, 1, STEPS), (4, 1, None), (2, 0, None)]
    done = [0]
    for size, rank, steps in mishaps:
        ended = run(processes, size, into_folder(config, path), Mishap("kill", rank, steps=steps))
        assert ended[rank].status == -9
        assert all(other.status != 0 for other in ended)
        for other in ended[:rank] + ended[rank + 1 :]:
            assert "LostProcessError: process" in other.errors and says_lost(other.errors, rank)
        assert inspect_output(path) == "incomplete"
        journal = read_journal(path)
        assert journal is not None
        done.append(journal.sequences)
    assert done[0] < done[1] < done[2] < done[3] < done[4] == done[5]
    complete(processes, 4, config, path)
    assert contents(path) == alone


def test_kills_at_random_moments(
    processes: ForkServerContext, config: HarvestConfig, alone: dict[str, str], tmp_path: Path
) -> None:
    path, moments = tmp_path / "cache", random.Random(int(time.time()))
    began = time.monotonic()
    complete(processes, 2, config, tmp_path / "undisturbed")
    seconds = time.monotonic() - began
    for _ in range(4):
        size = moments.choice([2, 3, 4])
        mishap = Mishap("kill", moments.randrange(size), seconds=moments.uniform(0.1, 1.0) * seconds)
        run(processes, size, into_folder(config, path), mishap)
    complete(processes, moments.choice([1, 2, 3]), config, path)
    assert contents(path) == alone


@pytest.mark.parametrize(
    ("mishap", "status", "said"),
    [
        (Mishap("nan", 1, steps=STEPS), 2, "BadActivationError: hook attn_out.0, document"),
        (Mishap("full", 2, steps=STEPS), 1, "DiskFullError: the disk ran full while writing"),
        (Mishap("full", 0, steps=STEPS), 1, "DiskFullError: the disk ran full while writing"),
    ],
    ids=lambda value: f"{value.kind} at {value.rank}" if isinstance(value, Mishap) else "",
)
def test_one_failure_ends_all_and_is_said_once(
    processes: ForkServerContext,
    config: HarvestConfig,
    alone: dict[str, str],
    tmp_path: Path,
    mishap: Mishap,
    status: int,
    said: str,
) -> None:
    path = tmp_path / "cache"
    ended = run(processes, 3, into_folder(config, path), mishap)
    assert [one.status for one in ended] == [status] * 3
    assert said in ended[mishap.rank].errors
    for rank, other in enumerate(ended):
        if rank != mishap.rank:
            assert f"OtherProcessError: process {mishap.rank} failed" in other.errors
    journal = read_journal(path)
    assert journal is not None and journal.sequences > 0  # what was committed is kept
    complete(processes, 2, config, path)
    assert contents(path) == alone


@pytest.mark.parametrize("mishap", [Mishap("stop", 2, steps=5), Mishap("stop", 1), Mishap("stop", 0)])
def test_a_stop_of_one_process_stops_all_at_one_point(
    processes: ForkServerContext,
    config: HarvestConfig,
    alone: dict[str, str],
    tmp_path: Path,
    mishap: Mishap,
) -> None:
    path = tmp_path / "cache"
    seldom = config.model_copy(update={"commit_seconds": 1e6})
    ended = run(processes, 3, into_folder(seldom, path), mishap)
    assert [one.status for one in ended] == [130] * 3
    assert "stopping after this step" in ended[mishap.rank].errors
    journal = read_journal(path)
    assert journal is not None and journal.sequences > 0
    assert journal.progress["phase"] == ("reading" if mishap.steps else "finishing")
    complete(processes, 1, config, path)
    assert contents(path) == alone


def test_a_process_that_cannot_begin_ends_all(
    processes: ForkServerContext, config: HarvestConfig, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    wrong = config.model_copy(update={"hooks": ("resid_post.9",)})
    ended = run(processes, 2, into_folder(wrong, path))
    assert [one.status for one in ended] == [2, 2]
    assert "UsageError: " in ended[0].errors and "OtherProcessError: process 0 failed" in ended[1].errors
    assert not path.exists()


def test_processes_with_folders_of_their_own_are_refused_at_once(
    processes: ForkServerContext, config: HarvestConfig, tmp_path: Path
) -> None:
    apart = Harvest(config, str(tmp_path / "a" / "b"), tmp_path, elsewhere=str(tmp_path / "c"))
    ended = run(processes, 2, apart)
    assert [one.status for one in ended] == [2, 2]
    assert "does not see what process 0, on " in ended[1].errors
    assert "planned:" not in ended[0].errors  # before the model is loaded
    assert not (tmp_path / "a").exists() and not (tmp_path / "c").exists()


def test_an_older_part_of_the_same_harvest_is_another_folder(
    processes: ForkServerContext, config: HarvestConfig, tmp_path: Path
) -> None:
    """As after a requeue on other machines, whose own disks have what they had written before."""
    for name in ("a", "c"):
        run(processes, 1, into_folder(config, tmp_path / name), Mishap("kill", 0, steps=STEPS))
        assert inspect_output(tmp_path / name) == "incomplete"
    apart = Harvest(config, str(tmp_path / "a"), tmp_path, elsewhere=str(tmp_path / "c"))
    ended = run(processes, 2, apart)
    assert [one.status for one in ended] == [2, 2]
    assert "does not see what process 0, on " in ended[1].errors
    assert {path.name for path in (tmp_path / "a").iterdir()} == {".writing"}
    assert not list((tmp_path / "a" / ".writing").glob("seen-by-all*"))


@pytest.fixture(scope="module")
def base(
    processes: ForkServerContext, config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The first half of the harvest, and a little more, which ends inside a block."""
    path = tmp_path_factory.mktemp("base") / "cache"
    half = config.model_copy(update={"num_tokens": config.num_tokens // 2 + 77})
    complete(processes, 2, half, path)
    return path


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_extended_cache_has_the_bytes_of_one_process(
    processes: ForkServerContext,
    config: HarvestConfig,
    alone: dict[str, str],
    base: Path,
    tmp_path: Path,
    size: int,
) -> None:
    path = tmp_path / "cache"
    extending = replace(into_folder(config, path), extend=base)
    for rank, ended in enumerate(run(processes, size, extending)):
        assert ended.status == 0, f"process {rank}: {ended.errors[-3000:]}"
    assert contents(path) == alone
    assert "tokens are copied from there" in extending.said_by(0).read_text()


def test_copying_goes_on_after_kills_and_stops_with_other_processes(
    processes: ForkServerContext, config: HarvestConfig, alone: dict[str, str], base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    extending = replace(into_folder(config, path), extend=base)
    copied = []
    for size, mishap in (
        (3, Mishap("kill", 1, copied=4)),
        (2, Mishap("kill", 0, copied=3)),
        (3, Mishap("stop", 2, copied=2)),
    ):
        ended = run(processes, size, extending, mishap)
        assert all(one.status != 0 for one in ended)
        journal = read_journal(path)
        assert journal is not None and journal.progress["phase"] == "copying"
        copied.append(journal.train_rows + journal.heldout_rows)
    assert 0 < copied[0] <= copied[1] <= copied[2]
    ended = run(processes, 2, into_folder(config, path))
    assert [one.status for one in ended] == [2, 2]
    assert "was begun with --extend" in ended[0].errors
    assert [one.status for one in run(processes, 4, extending)] == [0] * 4
    assert contents(path) == alone


def test_into_a_bucket(
    processes: ForkServerContext,
    config: HarvestConfig,
    alone: dict[str, str],
    tmp_path: Path,
    s3_server: S3Server,
    team: str,
) -> None:
    """By way of a scratch folder that all processes see; each uploads the shards that it has written."""
    url = f"{team}/cache"
    harvest = Harvest(config, url, tmp_path, tmp_path / "scratch", environment=s3_server.environment())
    ended = run(processes, 3, harvest, Mishap("kill", 1))
    assert [one.status for one in ended] == [1, -9, 1]
    assert "LostProcessError" in ended[0].errors
    ended = run(processes, 2, harvest)
    assert [one.status for one in ended] == [0, 0], ended[0].errors + ended[1].errors
    assert bytes_at(url) == alone
    assert not (tmp_path / "scratch").exists()
    assert [one.status for one in run(processes, 2, harvest)] == [0, 0]  # finished already


def test_torchrun_in_front_of_the_command(
    config: HarvestConfig, alone: dict[str, str], tmp_path: Path
) -> None:
    path, recipe = tmp_path / "cache", tmp_path / "harvest.yaml"
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = ["-m", "saecache", "harvest", str(recipe), "--out", str(path)]
    done = subprocess.run(
        [sys.executable, *torchrun, *command], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(path) == alone
    assert done.stderr.count("planned:") == 1


def test_chats_and_mixtures_have_the_bytes_of_one_process(
    processes: ForkServerContext,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    """Which tokens become rows travels with the sequences."""
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    chats = (
        [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"yes, {i}. " * (i % 20)},
        ]
        for i in range(300)
    )
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"text {i} " * 9}) + "\n" for i in range(50))
    )
    chat = {"roles": ["assistant"], "template": str(tmp_path / "chat.jinja")}
    parts = [
        {"weight": 3, "text": {"kind": "files", "paths": str(tmp_path / "chats.jsonl"), "chat": chat}},
        {"weight": 1, "text": {"kind": "files", "paths": str(tmp_path / "text.jsonl")}},
    ]
    mixed = make_config(text={"kind": "mixture", "parts": parts}, num_tokens=12_000, commit_seconds=0.0)
    found = []
    for size in (1, 3):
        complete(processes, size, mixed, tmp_path / str(size))
        found.append(contents(tmp_path / str(size)))
    assert found[0] == found[1]
    counts = open_cache(tmp_path / "3").manifest.counts
    assert counts["excluded_user"] == counts["tokens_user"] > 0
    assert 0 == counts["excluded_assistant"] < counts["tokens_assistant"]
