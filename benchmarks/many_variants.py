"""Several variants in one pass against one run for each: whole training runs on a cache of random unit rows.

    python benchmarks/many_variants.py [--quick] [--latents F] [--rows B] [--width D] [--steps N] [--rounds N]

Both ways train the same SAEs, from the same cache and with the same settings; their weights must come out the
same, bit for bit. Runs are calls in this process, where imports and compilation are paid already, or with
``--processes`` what a shell would start. Both ways take turns.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from shared.measuring import Report, parser, ratios, timed

from saecache import CacheWriter, open_cache
from saecache.train import TrainConfig, run

VARIANTS = (
    {"kind": "topk", "k": 32},
    {"kind": "topk", "k": 64},
    {"kind": "batch_topk", "k": 32},
    {"kind": "batch_topk", "k": 64},
)


def write_rows(path: Path, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    with CacheWriter(path, hooks={"random": width}, identity={"source": "random"}) as writer:
        for start in range(0, rows, 8192):
            writer.write_rows({"random": torch.randn(min(8192, rows - start), width, generator=generator)})


def config(settings: argparse.Namespace, variants: tuple[dict, ...]) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "variants": variants,
            "num_latents": settings.latents,
            "batch_rows": settings.rows,
            "steps": settings.steps,
            "checkpoint": {"every_steps": settings.steps, "keep": 1},
            "log": {"every_steps": 1, "heldout_rows": 0, "progress": False},
            "initialisation": {"median_rows": settings.rows},
        }
    )


def train(settings: argparse.Namespace, cache: Path, out: Path, variants: tuple[dict, ...]) -> float:
    return timed(lambda: run(config(settings, variants), open_cache(cache), out)).seconds


def train_in_process(
    settings: argparse.Namespace, cache: Path, out: Path, variants: tuple[dict, ...]
) -> float:
    settings_file = out.with_suffix(".json")
    settings_file.write_text(json.dumps(config(settings, variants).model_dump(mode="json")))
    program = "from saecache.cli import main; main()"
    command = [sys.executable, "-c", program, "train", settings_file, "--cache", cache, "--out", out]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True)).seconds


def step_seconds(out: Path) -> float:
    """Median of all steps but the first, which touches fresh memory."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return median({line["step"]: line["seconds"] for line in lines if line["step"] > 1}.values())


def weights(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.glob("*/sae/weights.safetensors"))]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--latents", type=int, default=24576)
    options.add_argument("--rows", type=int, default=4096)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--processes", action="store_true", help="every run in a process of its own")
    settings = options.parse_args()
    if settings.quick:
        settings.latents, settings.rows, settings.width = 4096, 1024, 256
        settings.rounds = min(settings.rounds, 2)
    work = train_in_process if settings.processes else train
    whole: dict[str, list[float]] = {"one pass": [], "separate runs": []}
    steps: dict[str, list[float]] = {"one pass": [], "separate runs": []}
    report = Report(
        "many_variants",
        settings,
        f"{len(VARIANTS)} variants, F = {settings.latents:,}, B = {settings.rows:,}, D = {settings.width}, "
        f"{settings.steps} steps, {torch.get_num_threads()} threads, "
        f"{'a process for every run' if settings.processes else 'one process'}",
    )
    with tempfile.TemporaryDirectory() as folder:
        cache, out = Path(folder) / "cache", Path(folder) / "out"
        write_rows(cache, settings.rows * settings.steps, settings.width)
        for number in range(-1, settings.rounds):  # the first one compiles
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            together = work(settings, cache, out / "together", VARIANTS)
            names = (f"{v['kind']}_k{v['k']}" for v in VARIANTS)
            runs = {name: (v,) for name, v in zip(names, VARIANTS, strict=True)}
            separate = sum(work(settings, cache, out / name, one) for name, one in runs.items())
            alone = [weights(out / name)[0] for name in sorted(runs)]
            if weights(out / "together") != alone:
                raise SystemExit("the SAEs are not the same, bit for bit")
            if number >= 0:
                whole["one pass"].append(together)
                whole["separate runs"].append(separate)
                steps["one pass"].append(step_seconds(out / "together"))
                steps["separate runs"].append(sum(step_seconds(out / name) for name in runs))
    for group, seconds in (("steps", steps), ("whole runs, with starts and checkpoints", whole)):
        for what, taken in seconds.items():
            report.add(what, taken, "s", group)
        shorter = ratios(seconds["one pass"], seconds["separate runs"])
        report.add("time of one pass / of separate runs", shorter, group=group)
    report.save()


if __name__ == "__main__":
    main()
