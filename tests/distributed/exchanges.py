"""What each process of test_group.py does; it prints its answers as one line of JSON."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from saecache.common.errors import UsageError
from saecache.distributed import join_world
from saecache.distributed.errors import LostProcessError, OtherProcessError


def exchange() -> dict[str, object]:
    with join_world() as world:
        group, rank = world.everyone, world.rank
        answers: dict[str, object] = {
            "gather": [t.tolist() for t in group.gather(torch.tensor([rank, 10 * rank]))],
            "ragged": [t.tolist() for t in group.gather_rows(torch.full((rank, 2), float(rank)))],
            "exchange": [
                t.tolist()
                for t in group.exchange(
                    torch.arange(2 * group.size).view(-1, 1) + 10 * rank, [2] * group.size
                )
            ],
            "uneven": [
                t.tolist()
                for t in group.exchange(torch.full((group.size + 1,), rank), [2, *[1] * (group.size - 1)])
            ],
            "sum": group.sum(torch.tensor([1, rank])).tolist(),
            "least": group.least(torch.tensor([1.5, -float(rank)])).tolist(),
            "added": group.add_up(rank),
            "max": group.max(torch.tensor([1.5, -float(rank)])).tolist(),
            "any": [group.any(rank == 1), group.any(False)],
            "broadcast": group.broadcast(torch.tensor([rank]), group.size - 1).tolist(),
            "values": group.gather_values({"rank": rank}),
            "first": group.on_first(lambda: f"said by {rank}"),
        }
        running = torch.zeros(3)
        if not group.is_first:
            group.receive(running, rank - 1)
        running += rank
        if not group.is_last:
            group.wait([group.send(running, rank + 1)])
        answers["chain"] = running.tolist()
        pairs = world.split([[0, 1], list(range(2, world.size))] if world.size > 2 else [[0, 1]])
        backwards = world.split([list(reversed(range(world.size)))])
        answers["backwards"] = [backwards.rank, *(int(t) for t in backwards.gather(torch.tensor(rank)))]
        answers["split"] = [pairs.rank, pairs.size, int(pairs.sum(torch.tensor(rank)))]
        try:
            with group.together():
                if rank == 1:
                    raise UsageError("k must be at least 1, got 0")
        except OtherProcessError as error:
            answers["failure"] = ["other", error.rank, error.exit_status]
        except UsageError as error:
            answers["failure"] = ["own", str(error)]
        try:
            with group.together():
                raise UsageError("the same everywhere")
        except OtherProcessError as error:
            answers["same"] = ["other", error.rank]
        except UsageError:
            answers["same"] = ["own"]
        answers["messages"] = group.traffic.messages > 0
        return answers


def on_a_device() -> dict[str, object]:
    """The exchanges of tensors of a pretended device, which nothing here carries."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
    from device.pretended_device import DEVICE, pretended_device, to_host

    with join_world() as world, pretended_device():
        group, rank = world.everyone, world.rank
        own = torch.tensor([rank, 10 * rank]).to(DEVICE)
        running = torch.zeros(3).to(DEVICE)
        if not group.is_first:
            group.receive(running, rank - 1)
        running += rank
        if not group.is_last:
            group.wait([group.send(running, rank + 1)])
        broadcast = own.clone()
        group.broadcast(broadcast, group.size - 1)
        found = {
            "gather": group.gather(own),
            "ragged": group.gather_rows(own[:rank]),
            "exchange": group.exchange(own.view(-1, 1), [1] * group.size),
            "sum": [group.sum(own)],
            "least": [group.least(own)],
            "broadcast": [broadcast],
            "chain": [running],
        }
        assert all(tensor.device == DEVICE for tensors in found.values() for tensor in tensors)
        assert to_host(own).tolist() == [rank, 10 * rank], "what was given has not changed"
        return {name: [to_host(tensor).tolist() for tensor in tensors] for name, tensors in found.items()}


def freeze_with_a_device_at_work() -> dict[str, object]:
    """The last process freezes; the others only wait for a device that waits for it."""
    with join_world() as world:
        world.everyone.barrier()  # all have joined
        if world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        heartbeat = world.everyone.connection.heartbeat
        assert heartbeat is not None
        heartbeat.watch(lambda: False)
        time.sleep(600)
    return {}


def lose() -> dict[str, object]:
    with join_world() as world:
        if world.rank == int(sys.argv[2]):
            world.everyone.barrier()  # all have joined
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            for _ in range(1000):
                world.everyone.barrier()
        except LostProcessError as error:
            return {"lost": str(error)}
    return {}


def work_alone() -> dict[str, object]:
    """The first process works alone for longer than the others' timeout, at an operation of each kind."""
    with join_world() as world:
        group = world.everyone
        pair = world.split([[0, 1], [2]])
        if world.rank < 2:
            pair.on_first(lambda: time.sleep(4 * TIMEOUT / 3))
        if group.is_first:
            time.sleep(4 * TIMEOUT / 3)
            group.wait([group.send(torch.tensor([7]), 1)])
        received = int(group.receive(torch.zeros(1, dtype=torch.int64), 0)) if group.rank == 1 else 7
        return {"first": group.on_first(lambda: time.sleep(4 * TIMEOUT / 3) or 3), "received": received}


def freeze() -> dict[str, object]:
    """A process stands still, as on a machine that is lost: its connections stay open."""
    with join_world() as world:
        world.everyone.barrier()
        if world.rank == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            world.everyone.barrier()
        except LostProcessError as error:
            return {"lost": str(error)}
    return {}


def stand_still() -> dict[str, object]:
    """A process waits for a file, as one on a network disk may, and goes on when it comes."""
    with join_world() as world:
        text = Path(sys.argv[2]).read_text() if world.rank == 1 else ""
        return {"read": world.everyone.gather_values(text)}


TIMEOUT = float(os.environ.get("SAECACHE_TIMEOUT", "0"))
print(json.dumps(globals()[sys.argv[1]]()))
