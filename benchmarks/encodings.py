"""What each encoding of the rows costs: bytes, reading speed, and the error of an SAE trained from it.

    python benchmarks/encodings.py [--quick] [--tokens N] [--epochs E] [--rounds R] [--folder DIR]

The built-in model is harvested once, as float32; ``saecache cache convert`` makes the other caches, which are
those that a harvest with their settings makes. From each the same TopK SAE is trained (same seed, same order
of the same rows), and every SAE is measured on the same held-out rows, those of the float32 cache: the
differences are what the encodings do. ``float32, seed 1`` says how much another seed does.

Reading is whole epochs of float32 batches [4096, D], chunks checked against their crc32c before; rounds are
interleaved and the medians are told. Bytes per row are those of activations, norm, mean, scale and token.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from saecache.common.fvu import FVU
from saecache.configs import load_config
from saecache.harvest import HarvestConfig
from saecache.harvest import run as harvest
from saecache.store import ActivationCache, convert_cache, open_cache
from saecache.store.encoding.codecs import BloscCodec, ZstdCodec
from saecache.train import TrainConfig, load_sae
from saecache.train import run as train

HOOK = "resid_post.3"
BATCH_ROWS = 4096
ENCODINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "float16 + zstd": {"dtype": "float16", "codec": ZstdCodec()},
    "float16 + blosc": {"dtype": "float16", "codec": BloscCodec()},
    "bfloat16 + blosc": {"dtype": "bfloat16", "codec": BloscCodec()},
    "int8 + zstd": {"dtype": "int8", "codec": ZstdCodec()},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens, one epoch")
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.epochs, arguments.rounds = 15_000, 1, 3
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        caches = make_caches(Path(name), arguments.tokens)
        speeds = read_speeds(caches, arguments.rounds)
        exact = caches["float32"]
        errors = {
            label: fvu(Path(name) / f"run {label}", cache, exact, arguments.epochs, seed=0)
            for label, cache in caches.items()
        }
        errors["float32, seed 1"] = fvu(Path(name) / "run seed", exact, exact, arguments.epochs, seed=1)
        report(caches, speeds, errors)


def make_caches(folder: Path, tokens: int) -> dict[str, ActivationCache]:
    """The demo harvest as float32, and converted to every other encoding."""
    settings = [f"num_tokens={tokens}", f"hooks=[{HOOK}]", "storage.dtype=float32"]
    config = load_config(HarvestConfig, "demo", settings, kinds=("harvest",))
    caches = {"float32": open_cache(harvest(config, folder / "float32").path)}
    for label, encoding in ENCODINGS.items():
        if encoding:
            path = convert_cache(caches["float32"], folder / label, **encoding).path
            caches[label] = open_cache(path)
    return caches


def read_speeds(caches: dict[str, ActivationCache], rounds: int) -> dict[str, tuple[float, float]]:
    """Millions of rows per second of each cache: in stored order, and in the order of a later epoch."""
    passes: dict[tuple[str, int], Callable[[], Any]] = {
        (label, epoch): lambda cache=cache, epoch=epoch: cache.batches(HOOK, BATCH_ROWS, epoch=epoch)
        for label, cache in caches.items()
        for epoch in (0, 1)
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in passes}
    for number in range(rounds + 1):
        for key, make in passes.items():
            start = perf_counter()
            for _ in make():
                pass
            if number:  # the first pass checks the chunks
                seconds[key].append(perf_counter() - start)
    rows = len(caches["float32"]) / 1e6
    return {label: (rows / median(seconds[label, 0]), rows / median(seconds[label, 1])) for label in caches}


def fvu(out: Path, cache: ActivationCache, exact: ActivationCache, epochs: float, seed: int) -> float:
    """Train a TopK SAE from ``cache`` and measure it on the held-out rows of ``exact``."""
    settings = [
        "num_latents=1024",
        f"epochs={epochs}",
        f"seed={seed}",
        "variants=[{kind: topk, k: 16}]",
        "log={progress: false, heldout_rows: 0, heldout_every_steps: null}",
        "dead_after_rows=50000",
    ]
    config = load_config(TrainConfig, "demo", settings, kinds=("train",))
    (folder,) = train(config, cache, out).saes.values()
    sae = load_sae(folder)
    x = exact.rows(HOOK, range(exact.num_rows("heldout")), "heldout")
    measured = FVU()
    measured.add(x, sae(x.float()))
    return measured.value() or 0.0


def report(
    caches: dict[str, ActivationCache], speeds: dict[str, tuple[float, float]], errors: dict[str, float]
) -> None:
    exact = caches["float32"]
    width = exact.d_model(HOOK)
    print(f"{len(exact):,} training rows, {width} wide, {torch.get_num_threads()} threads")
    print("| encoding | bytes per row | of float16 | M rows/s | GB/s of float32 | later epoch | FVU |")
    print("|---|---|---|---|---|---|---|")
    sizes = {label: bytes_per_row(cache) for label, cache in caches.items()}
    for label in caches:
        first, later = speeds[label]
        print(
            f"| {label} | {sizes[label]:.0f} | {sizes[label] / sizes['float16']:.2f} | {first:.2f} "
            f"| {first * 1e6 * 4 * width / 1e9:.1f} | {later:.2f} | {errors[label]:.5f} |"
        )
    print(f"| float32, seed 1 | | | | | | {errors['float32, seed 1']:.5f} |")
    print(json.dumps({"bytes_per_row": sizes, "rows_per_second": speeds, "fvu": errors}))


def bytes_per_row(cache: ActivationCache) -> float:
    """Of the training rows of the one hook."""
    size = sum(file.size for file in cache.manifest.files if file.path.startswith("rows/"))
    return size / cache.manifest.train_rows


if __name__ == "__main__":
    main()
