"""Feature Choice over batches far larger than their pre-activations could be: time and memory of one step.

    python benchmarks/large_batches.py [--quick] [--variant feature_choice|mutual_choice|batch_topk]
        [--sizes RxF,RxF,...] [--width D] [--k K] [--warm]

R rows of a batch, F latents. For each size, one whole step (both passes and the optimizer) in a process of
its own: its time, the most memory above weights, gradients, moments and the batch ("peak above"), what all
pre-activations would have taken, how many latents were active nowhere, and the encoder's floating point
operations per second, from which times of larger sizes follow. ``--warm`` takes a step before, which is not
counted. Memory above follows the k R selected pairs and, far less, F; it never follows R F.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch
from shared.measuring import Report, parser, timed
from step import memory

from saecache.train.backends.scratch import release_scratch
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

SIZES = "4096x4096,16384x4096,65536x4096,4096x16384,16384x16384,4096x65536"
QUICK = "2048x2048,8192x2048,2048x8192"
MIB = 2**20


@torch.no_grad()
def one_step(variant: str, rows: int, latents: int, width: int, k: int, warm: bool) -> None:
    plan = Plan(d_model=width, num_latents=latents, batch_rows=rows, num_steps=10**6)
    trainee = Trainee(
        VARIANTS[variant].model_validate({"kind": variant, "k": k}),
        plan,
        0,
        OptimizerConfig(),
        initial_parameters(plan, 0, torch.zeros(width)),
    )
    x = torch.empty(rows, width)  # centered: the bias starts at 0
    generator = torch.Generator().manual_seed(0)
    for part in x.split(16384):
        part.normal_(generator=generator)
        part /= part.norm(dim=1, keepdim=True)
    held = [tensor for group in tensors(trainee) for tensor in group.values()]
    for tensor in held:
        tensor.add_(0)  # memory that was only promised becomes memory that is there

    def take_step(number: int) -> None:
        trainee.add_batch(x, x, number, 10**9)
        trainee.update(1.0)

    if warm:
        take_step(0)
    release_scratch()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    taken = timed(lambda: take_step(1))
    more = memory("VmHWM") - before
    silent = int((trainee.rows_since_active > 0).sum())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    flops = 2 * rows * latents * width
    figures = {
        "time of a step, s": taken.seconds,
        "peak above, MiB": more / MIB,
        "weights, gradients and moments, MiB": weights / MIB,
        "all pre-activations would take, MiB": 4 * rows * latents / MIB,
        "silent latents": silent,
        "encoder, GFLOP/s": flops / taken.seconds / 1e9,
    }
    print(json.dumps(figures))


def tensors(trainee: Trainee) -> tuple[dict[str, torch.Tensor], ...]:
    return trainee.parameters, trainee.gradients, trainee.optimizer.exp_avg, trainee.optimizer.exp_avg_sq


def main() -> None:
    options = parser(__doc__)
    variants = ("feature_choice", "mutual_choice", "batch_topk")
    options.add_argument("--variant", choices=variants, default="feature_choice")
    options.add_argument("--sizes", default=None)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--k", type=int, default=32)
    options.add_argument("--warm", action="store_true")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--one", default=None, help=argparse.SUPPRESS)
    settings = options.parse_args()
    if settings.one is not None:
        rows, latents = map(int, settings.one.split("x"))
        one_step(settings.variant, rows, latents, settings.width, settings.k, settings.warm)
        return
    size = f"{settings.variant}, D = {settings.width}, k = {settings.k}, {torch.get_num_threads()} threads"
    report = Report("large_batches", settings, size)
    for size in (settings.sizes or (QUICK if settings.quick else SIZES)).split(","):
        command = [sys.executable, __file__, "--one", size, "--variant", settings.variant]
        command += ["--width", str(settings.width), "--k", str(settings.k)]
        command += ["--warm"] if settings.warm else []
        found = []
        for _ in range(settings.rounds):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                found.append(json.loads(done.stdout))
            else:  # most often for want of memory: the other sizes are still worth measuring
                print(f"{size}: ended with status {done.returncode}")
        rows, latents = map(int, size.split("x"))
        for what in found[0] if found else ():
            values, unit = [figures[what] for figures in found], what.rpartition(", ")[2]
            group = f"R = {rows:,}, F = {latents:,}"
            report.add(what.removesuffix(f", {unit}"), values, unit if ", " in what else "", group)
    report.save()


if __name__ == "__main__":
    main()
