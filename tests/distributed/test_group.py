"""Groups of processes: what they exchange, and how they fail together."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from saecache.common.errors import UsageError
from saecache.distributed import join_world, launch, world
from saecache.distributed.group import ALONE
from saecache.distributed.stillness import Stillness

from .processes import SECONDS, run, says_lost, start, wait

PROGRAM = str(Path(__file__).with_name("exchanges.py"))


@pytest.mark.parametrize("size", [2, 3])
def test_processes_exchange(size: int, tmp_path: Path) -> None:
    ranks = range(size)
    for rank, ended in enumerate(run(size, [PROGRAM, "exchange"], tmp_path)):
        found = json.loads(ended.output)
        assert found["gather"] == [[r, 10 * r] for r in ranks]
        assert found["ragged"] == [[[float(r)] * 2] * r for r in ranks]
        own = [2 * rank, 2 * rank + 1]
        assert found["exchange"] == [[[10 * r + row] for row in own] for r in ranks]
        assert found["uneven"] == [[r] * (2 if rank == 0 else 1) for r in ranks]
        assert found["least"] == [1.5, float(1 - size)]
        assert found["added"] == sum(ranks)
        assert found["backwards"] == [size - 1 - rank, *reversed(ranks)]
        assert found["sum"] == [size, sum(ranks)]
        assert found["max"] == [1.5, 0.0]
        assert found["any"] == [True, False]
        assert found["broadcast"] == [size - 1]
        assert found["values"] == [{"rank": r} for r in ranks]
        assert found["first"] == "said by 0"
        assert found["chain"] == [float(sum(range(rank + 1)))] * 3
        in_pair = rank < 2
        assert found["split"] == ([rank, 2, 1] if in_pair else [0, 1, 2])
        own = ["own", "k must be at least 1, got 0"]
        assert found["failure"] == (own if rank == 1 else ["other", 1, 2])
        assert found["same"] == (["own"] if rank == 0 else ["other", 0])
        assert found["messages"]


def test_tensors_of_a_device_that_nothing_carries_travel_through_main_memory(tmp_path: Path) -> None:
    """As those of two processes on one GPU, which NCCL refuses; gloo has few operations on GPUs."""
    for rank, ended in enumerate(run(2, [PROGRAM, "on_a_device"], tmp_path)):
        assert json.loads(ended.output) == {
            "gather": [[0, 0], [1, 10]],
            "ragged": [[], [1]],
            "exchange": [[[0]], [[1]]] if rank == 0 else [[[0]], [[10]]],
            "sum": [[1, 10]],
            "least": [[0, 0]],
            "broadcast": [[1, 10]],
            "chain": [[float(rank)] * 3],
        }


@pytest.mark.parametrize(
    ("gpus", "nccl", "carries"),
    [
        ({0: 2, 1: 2}, True, {"cpu": "gloo", "cuda": "nccl"}),
        ({0: 2, 1: 1}, True, {"cpu": "gloo"}),  # the second machine has one GPU for two processes
        ({0: 2, 1: 2}, False, {"cpu": "gloo"}),
    ],
)
def test_all_processes_use_nccl_or_none_does(
    gpus: dict[int, int], nccl: bool, carries: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)

    def agree(rank: int) -> dict[str, str]:
        return launch._agree_on_carriers(store, rank, 2, 2)

    with ThreadPoolExecutor(1) as other:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus[threading.get_ident() != main])
        main = threading.get_ident()
        theirs = other.submit(agree, 1)
        assert agree(0) == theirs.result() == carries


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_the_others_with_words(killed: int, tmp_path: Path) -> None:
    ended = wait(start(3, [PROGRAM, "lose", str(killed)], tmp_path))
    assert ended[killed].status == -9
    for rank in {0, 1, 2} - {killed}:
        assert ended[rank].status == 0, ended[rank].errors
        assert says_lost(json.loads(ended[rank].output)["lost"], killed)


def test_a_process_that_works_alone_is_waited_for(tmp_path: Path) -> None:
    """However short the timeout is."""
    for ended in run(3, [PROGRAM, "work_alone"], tmp_path, SAECACHE_TIMEOUT="15"):
        assert json.loads(ended.output) == {"first": 3, "received": 7}


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_frozen_process_ends_the_others_with_words(frozen: int, tmp_path: Path) -> None:
    processes = start(3, [PROGRAM, "freeze", str(frozen)], tmp_path)
    try:
        for rank in {0, 1, 2} - {frozen}:
            output, errors = processes[rank].communicate(timeout=SECONDS)
            said = f"process {frozen} of this run is gone or does not answer"
            if processes[rank].returncode == 0:  # another one ended first, which breaks the connection
                assert said in json.loads(output)["lost"]
            else:
                assert processes[rank].returncode == 1
                assert f"error in process {rank}: {said}" in errors
    finally:
        processes[frozen].kill()
        processes[frozen].communicate(timeout=SECONDS)


def test_who_waits_for_a_device_that_waits_for_a_frozen_process_ends(tmp_path: Path) -> None:
    processes = start(2, [PROGRAM, "freeze_with_a_device_at_work"], tmp_path)
    try:
        _, errors = processes[0].communicate(timeout=SECONDS)
        assert processes[0].returncode == 1
        assert "error in process 0: process 1 of this run is gone or does not answer" in errors
    finally:
        processes[1].kill()
        processes[1].communicate(timeout=SECONDS)


def test_a_process_that_makes_no_progress_says_where_it_is(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    processes = start(2, [PROGRAM, "stand_still", str(fifo)], tmp_path, SAECACHE_STILL_MINUTES="0.01")
    deadline = time.monotonic() + SECONDS
    while "continues" not in (said := processes[1].said()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = processes[1].process.pid
    assert said.startswith(f"warning: process 1 (pid {pid} on ")
    assert "for 0.01 minutes" in said and "open (" in said and f"kill -9 {pid}" in said
    fifo.write_text("come back")
    first, second = wait(processes)
    assert (first.status, second.status, first.errors) == (0, 0, "")  # it waited for the other
    assert json.loads(second.output) == {"read": ["", "come back"]}


def test_stillness_is_said_once_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used, place = [0.0], [0.0], [(("file.py", 1, "read"),)]
    monkeypatch.setattr("saecache.distributed.stillness.time.monotonic", lambda: now[0])
    monkeypatch.setattr("saecache.distributed.stillness.time.process_time", lambda: used[0])
    monkeypatch.setattr("saecache.distributed.stillness.find_place", lambda _: place[0])
    still = Stillness(3, 60.0)

    def warnings(seconds: int, *, waiting: bool = False, share: float = 0.0) -> list[str]:
        found = []
        for _ in range(seconds):
            now[0] += 1
            used[0] += share
            found.append(still.look(waiting=waiting))
        return [warning for warning in found if warning is not None]

    (said,) = warnings(300)
    assert "process 3 " in said and "for 1 minutes" in said and "read (file.py:1)" in said
    assert warnings(300, waiting=True) == warnings(300, share=0.1) == []
    assert len(warnings(300)) == 1
    place[0] = (("file.py", 2, "write"),)
    assert len(warnings(300)) == 1


def test_a_process_alone_exchanges_nothing() -> None:
    tensor = torch.tensor([1.5, 2.5])
    with join_world() as alone:
        assert alone is world()
        assert alone.size == 1
        group = alone.everyone
    assert group.gather(tensor)[0] is tensor
    assert group.gather_rows(tensor)[0] is tensor
    assert group.max(tensor) is tensor
    assert group.on_first(lambda: 3) == 3
    assert (group.any(True), group.any(False)) == (True, False)
    with pytest.raises(UsageError, match="mistake"), group.together():
        raise UsageError("mistake")
    assert (ALONE.traffic.messages, ALONE.traffic.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT must say where the processes meet"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be from 0 to WORLD_SIZE=2 less 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "should be whole numbers"),
        (
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
                "SAECACHE_TIMEOUT": "-1",
            },
            "SAECACHE_TIMEOUT must be a number of seconds above 0",
        ),
        (
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
                "SAECACHE_STILL_MINUTES": "soon",
            },
            "SAECACHE_STILL_MINUTES must be a number of minutes above 0",
        ),
    ],
)
def test_a_wrong_environment_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), join_world():
        pass


def test_one_task_of_srun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with join_world() as alone:
        assert alone.size == 1
