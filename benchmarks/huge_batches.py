"""Feature Choice over a batch of a million rows that several processes share: memory, and that a run goes on.

    python benchmarks/huge_batches.py [--quick] [--rows R] [--processes N] [--latents F] [--width D] [--k K]
        [--steps S]

The script makes a cache of R rows and starts the processes itself, on this machine, with ``parallel.rows=N``.
It trains S steps of R rows, then the same again with one process killed half way and the run continued, and
checks that both end with the same weights. Memory is the most that a process takes above what it takes when
it is idle, after a small run; beside it stands what docs/cluster.md says of it.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared.measuring import Report, parser
from step import memory

from saecache.distributed import join_world
from saecache.store import CacheWriter, open_cache
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, run

MIB = 2**20
WRITE_ROWS = 1 << 16
CANDIDATE_BYTES, COMPARED_BYTES, COMPARED = 85, 80, 1 << 20  # docs/cluster.md


def write_cache(path: Path, rows: int, width: int) -> None:
    with CacheWriter(path, hooks={"resid": width}, identity={"source": "huge"}) as writer:
        for start in range(0, rows, WRITE_ROWS):
            writer.write_rows({"resid": sparse_rows(min(WRITE_ROWS, rows - start), width, seed=start)})


def config_of(settings: argparse.Namespace, **changes: object) -> TrainConfig:
    values = {
        "num_latents": settings.latents,
        "batch_rows": settings.rows,
        "steps": settings.steps,
        "parallel": {"rows": settings.processes},
        "variants": [{"kind": "feature_choice", "k": settings.k, "name": "huge"}],
        "log": {"every_steps": 1},
        "checkpoint": {"every_steps": 1},
    }
    return TrainConfig.model_validate(values | changes)


def work(settings: argparse.Namespace) -> None:
    """What each process does: a small run, whose compiled code it then has, and the large one."""
    cache, small = open_cache(settings.folder / "cache"), min(settings.rows, 4096)
    with join_world() as world:
        run(config_of(settings, batch_rows=small, steps=1), cache, settings.folder / f"small-{settings.run}")
        ctypes.CDLL(None).malloc_trim(0)
        idle = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        run(config_of(settings), cache, settings.folder / settings.run)
        found = {"above": memory("VmHWM") - idle, "idle": idle}
        (settings.folder / f"{settings.run}.{world.rank}.json").write_text(json.dumps(found))


def start(settings: argparse.Namespace, name: str) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    size = settings.processes
    own = ["--run", name, "--folder", str(settings.folder)]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    placements = [shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1} for rank in range(size)]
    return [
        subprocess.Popen(
            [sys.executable, *sys.argv, *own], env=os.environ | {key: str(v) for key, v in each.items()}
        )
        for each in placements
    ]


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    if max(one.wait() for one in processes):
        raise SystemExit("a process failed: see above")


def kill_one_half_way(settings: argparse.Namespace, name: str) -> None:
    """Start a run, and kill its last process once half of the steps are logged."""
    lines = settings.folder / name / "metrics.jsonl"
    processes = start(settings, name)
    while not lines.is_file() or len(lines.read_text().splitlines()) < settings.steps // 2:
        if any(one.poll() is not None for one in processes):
            raise SystemExit("a process ended before it was killed: see above")
        time.sleep(0.05)
    processes[-1].send_signal(signal.SIGKILL)
    if 0 in [one.wait() for one in processes]:
        raise SystemExit("the run was over before a process was killed: take more steps")


def predicted_bytes(settings: argparse.Namespace) -> float:
    """What docs/cluster.md says that a step takes beside the tensors of the SAE."""
    own_rows = settings.rows / settings.processes
    chosen = min(settings.k * settings.rows / settings.latents, own_rows)
    candidates = settings.latents * chosen
    compared = min(COMPARED, settings.processes * candidates)
    return CANDIDATE_BYTES * candidates + COMPARED_BYTES * compared + 2 * 4 * own_rows * settings.width


def measure(settings: argparse.Namespace) -> None:
    size = (
        f"feature_choice, R = {settings.rows:,}, F = {settings.latents:,}, D = {settings.width}, "
        f"k = {settings.k}, {settings.processes} processes, {settings.steps} steps"
    )
    report = Report("huge_batches", settings, size)
    write_cache(settings.folder / "cache", settings.rows, settings.width)
    finish(start(settings, "whole"))
    kill_one_half_way(settings, "killed")
    finish(start(settings, "killed"))
    weights = [settings.folder / name / "huge/sae/weights.safetensors" for name in ("whole", "killed")]
    if weights[0].read_bytes() != weights[1].read_bytes():
        raise SystemExit("the run that was killed ended with other weights")
    found = [
        json.loads((settings.folder / f"{name}.{rank}.json").read_text())
        for name in ("whole", "killed")
        for rank in range(settings.processes)
    ]
    report.add("memory of a process above idle", [one["above"] / MIB for one in found], "MiB")
    report.add("the same by docs/cluster.md", [predicted_bytes(settings) / MIB], "MiB")
    report.add("memory of an idle process", [one["idle"] / MIB for one in found], "MiB")
    report.save()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--rows", type=int, default=1 << 20)
    options.add_argument("--latents", type=int, default=512)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--k", type=int, default=8)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--run", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = options.parse_args()
    if settings.quick:
        settings.rows, settings.latents = 1 << 14, 256
    if settings.run is not None:
        work(settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        settings.folder = Path(folder)
        measure(settings)


if __name__ == "__main__":
    main()
