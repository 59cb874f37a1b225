"""What each encoding of the rows costs: bytes, reading speed, and the error of an SAE trained from it.

    python benchmarks/encodings.py [--quick] [--tokens N] [--epochs E] [--rounds R] [--folder DIR]

The built-in model is harvested once, as float32; ``saecache cache convert`` makes the other caches, which are
those that a harvest with their settings makes. From each the same TopK SAE is trained (same seed, same order
of the same rows), and every SAE is measured on the same held-out rows, those of the float32 cache: the
differences are what the encodings do. ``float32, seed 1`` says how much another seed does.

Reading is whole epochs of float32 batches [4096, D], whose chunks were checked against their crc32c before.
The caches take turns. Bytes per row are those of activations, norm, mean, scale and token.
"""

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch
from shared.measuring import Cost, Report, parser, seconds_of, take_turns, timed

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
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=150_000)
    options.add_argument("--epochs", type=float, default=2)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--folder", type=Path, default=None, help="where the files go (a temporary folder)")
    settings = options.parse_args()
    if settings.quick:
        settings.tokens, settings.epochs, settings.rounds = 15_000, 1, 3
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        caches = make_caches(Path(name), settings.tokens)
        exact = caches["float32"]
        size = f"{len(exact):,} training rows of {exact.d_model(HOOK)}, {torch.get_num_threads()} threads"
        report = Report("encodings", settings, size)
        for label, cache in caches.items():
            report.add(label, [bytes_per_row(cache)], "bytes", "size of a row")
        add_speeds(report, caches, settings.rounds)
        for label, cache in caches.items():
            error = fvu(Path(name) / f"run {label}", cache, exact, settings.epochs, seed=0)
            report.add(label, [error], group="FVU of held-out rows", decimals=5)
        error = fvu(Path(name) / "run seed", exact, exact, settings.epochs, seed=1)
        report.add("float32, seed 1", [error], group="FVU of held-out rows", decimals=5)
        report.save()


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


def add_speeds(report: Report, caches: dict[str, ActivationCache], rounds: int) -> None:
    """In the stored order, and in the order of a later epoch."""

    def one_pass(cache: ActivationCache, epoch: int) -> Cost:
        return timed(lambda: deque(cache.batches(HOOK, BATCH_ROWS, epoch=epoch), maxlen=1))

    ways = {
        (epoch, label): lambda cache=cache, epoch=epoch: one_pass(cache, epoch)
        for epoch in (0, 1)
        for label, cache in caches.items()
    }
    rows = len(caches["float32"]) / 1e6
    for (epoch, label), taken in seconds_of(take_turns(ways, rounds)).items():
        group = "reading a later epoch" if epoch else "reading in stored order"
        report.add(label, (rows / time for time in taken), "M rows/s", group)


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


def bytes_per_row(cache: ActivationCache) -> float:
    """Of the training rows of the one hook."""
    size = sum(file.size for file in cache.manifest.files if file.path.startswith("rows/"))
    return size / cache.manifest.train_rows


if __name__ == "__main__":
    main()
