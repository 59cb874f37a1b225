"""One training step by several processes of one thread each, and by one process with as many threads.

    python benchmarks/processes.py [--quick] [--processes N] [--latents F] [--rows B] [--width D] [--k K]
        [--variant topk|batch_topk|mutual_choice|feature_choice] [--rounds N]

The script starts the processes itself, on this machine. All hold their part of one SAE; the first one also
holds a whole SAE of its own, which it trains in turns with the others' while they wait. The processor time
of several processes is that of the busiest one times their number: it is disturbed less by other programs
than the time on the clock. The traffic is what one process sends.
"""

import argparse
import os
import socket
import subprocess
import sys
from functools import partial

import torch
from shared.measuring import Report, parser, timed

from saecache.distributed import join_world
from saecache.distributed.group import ALONE, Group
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

KINDS = ("topk", "batch_topk", "mutual_choice", "feature_choice")
WARM_UP = 2  # rounds that do not count


def make_trainee(settings: argparse.Namespace, group: Group) -> Trainee:
    plan = Plan(
        d_model=settings.width,
        num_latents=settings.latents,
        batch_rows=settings.rows,
        num_steps=10**6,
        group=group,
    )
    initial = initial_parameters(plan, 0, torch.zeros(plan.d_model))
    variant = VARIANTS[settings.variant].model_validate({"kind": settings.variant, "k": settings.k})
    return Trainee(variant, plan, 0, OptimizerConfig(), initial)


@torch.no_grad()
def take_step(trainee: Trainee, x: torch.Tensor, step: int) -> None:
    trainee.add_batch(x, x, step, 10**9)
    trainee.update(1.0)


def work(settings: argparse.Namespace) -> None:
    """What each process does; the first one reports."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(settings.rows, settings.width, generator=generator)
    x /= x.norm(dim=1, keepdim=True)
    clock, processor, bytes_sent, messages = [], [], [], []
    with join_world() as world:
        group = world.everyone
        shared = make_trainee(settings, group)
        alone = make_trainee(settings, ALONE) if group.is_first else None
        for step in range(WARM_UP + settings.rounds):
            torch.set_num_threads(1)
            group.barrier()
            before = group.traffic.bytes, group.traffic.messages
            here = timed(partial(take_step, shared, x, step))
            sent = group.traffic.bytes - before[0], group.traffic.messages - before[1]
            slowest, busiest = group.max(torch.tensor(here, dtype=torch.float64)).tolist()
            if alone is not None:
                torch.set_num_threads(group.size)
                one = timed(partial(take_step, alone, x, step))
                if step >= WARM_UP:
                    clock.append((slowest, one.seconds))
                    processor.append((busiest * group.size, one.cpu_seconds))
                    bytes_sent.append(sent[0] / 1e6)
                    messages.append(float(sent[1]))
            group.barrier()
        same = alone is None or torch.equal(alone.parameters["W_dec"][: len(shared.parameters["W_dec"])],
                                            shared.parameters["W_dec"])  # fmt: skip
        assert same, "the processes should end with the bits of one"
        if not group.is_first:
            return
    size = (
        f"{settings.variant}, F = {settings.latents:,}, B = {settings.rows:,}, D = {settings.width}, "
        f"k = {settings.k}, {settings.processes} processes"
    )
    report = Report("processes", settings, size)
    report.add("several processes", [pair[0] for pair in clock], "s")
    report.add("one process with as many threads", [pair[1] for pair in clock], "s")
    report.add("several / one", [a / b for a, b in clock])
    report.add("several / one, processor time", [a / b for a, b in processor])
    report.add("sent by the first process per step", bytes_sent, "MB")
    report.add("messages of the first process per step", messages)
    report.save()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--variant", choices=KINDS, default="topk")
    made.add_argument("--latents", type=int, default=24_576)
    made.add_argument("--rows", type=int, default=4096)
    made.add_argument("--width", type=int, default=768)
    made.add_argument("--k", type=int, default=32)
    made.add_argument("--rounds", type=int, default=9)
    settings = made.parse_args()
    if settings.quick:
        settings.latents, settings.rows, settings.width, settings.k, settings.rounds = 256, 128, 32, 4, 2
    if "RANK" in os.environ:
        work(settings)
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": settings.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env=os.environ | {name: str(value) for name, value in (shared | {"RANK": rank}).items()},
        )
        for rank in range(settings.processes)
    ]
    if max(one.wait() for one in started):
        raise SystemExit("a process failed: see above")


if __name__ == "__main__":
    main()
