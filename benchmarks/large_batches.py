"""Feature Choice over batches far larger than their pre-activations could be: time and memory of one step.

    python benchmarks/large_batches.py [--quick] [--variant feature_choice|mutual_choice|batch_topk]
        [--sizes RxF,RxF,...] [--width D] [--k K] [--warm]

R rows of a batch, F latents. For each size, one whole step (both passes and the optimizer) in a process of
its own: its time, the most memory above weights, gradients, moments and the batch, what all pre-activations
would have taken, how many latents were active nowhere, and the encoder's floating point operations per
second, from which times of larger sizes follow. ``--warm`` takes a step before, which is not counted.
"""

import argparse
import ctypes
import subprocess
import sys
from pathlib import Path

import torch
from step import memory, timed

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
    if warm:
        trainee.step(x, 0, 1.0, 10**9)
    release_scratch()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    taken = timed(lambda: trainee.step(x, 1, 1.0, 10**9))
    more = memory("VmHWM") - before
    silent = int((trainee.rows_since_active > 0).sum())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    flops = 2 * rows * latents * width
    print(
        f"{rows:>9,} {latents:>9,} {taken.seconds:>9.2f} s {more / MIB:>9,.0f} {weights / MIB:>9,.0f} "
        f"{4 * rows * latents / MIB:>12,.0f} {silent:>8} {flops / taken.seconds / 1e9:>10.0f}",
        flush=True,
    )


def tensors(trainee: Trainee) -> tuple[dict[str, torch.Tensor], ...]:
    return trainee.parameters, trainee.gradients, trainee.optimizer.exp_avg, trainee.optimizer.exp_avg_sq


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument(
        "--variant", choices=("feature_choice", "mutual_choice", "batch_topk"), default="feature_choice"
    )
    parser.add_argument("--sizes", default=None)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one is not None:
        rows, latents = map(int, settings.one.split("x"))
        one_step(settings.variant, rows, latents, settings.width, settings.k, settings.warm)
        return
    threads = torch.get_num_threads()
    print(f"{settings.variant}, D = {settings.width}, k = {settings.k}, {threads} threads; memory in MiB")
    heads = "R", "F", "a step", "more", "weights", "all pre", "silent", "GFLOP/s"
    print("{:>9} {:>9} {:>11} {:>9} {:>9} {:>12} {:>8} {:>10}".format(*heads))
    for size in (settings.sizes or (QUICK if settings.quick else SIZES)).split(","):
        chosen = ["--one", size, "--variant", settings.variant]
        chosen += [
            "--width",
            str(settings.width),
            "--k",
            str(settings.k),
            *(["--warm"] if settings.warm else []),
        ]
        done = subprocess.run([sys.executable, __file__, *chosen], check=False)
        if done.returncode:
            print(f"{size}: ended with status {done.returncode}")


if __name__ == "__main__":
    main()
