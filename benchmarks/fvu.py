"""The FVU our TopK and BatchTopK reach against other packages', at equal data and settings, over some seeds.

    python benchmarks/fvu.py [--cache CACHE] [--peer-python PATH] [--quick] [--hook HOOK] [--steps N]
        [--seeds N] [--latents F] [--k K] [--learning-rate LR | own] [--encoder-norm NORM | own] [--scaled]

Without ``--cache`` the demo's model is harvested first; without ``--peer-python``, the Python of an
environment with the other packages, ours is measured alone. All train on the same batches in the same
order: decoder rows of norm 1, encoder rows of ``--encoder-norm`` at the start, Adam at one constant
learning rate after the same warmup. ``--encoder-norm own`` leaves each package's own start of the encoder,
``--learning-rate own`` the rate that each package chooses by default, for sparsify with its default optimizer
(schedule-free sign descent instead of Adam). Each keeps its
own start of the bias, clipping, auxiliary losses (no latent is dead in so short a run, so that none acts)
and treatment of the decoder's norm, which SAELens lets grow. ``--scaled`` gives SAELens rows of mean norm
√D, as its ``normalize_activations: expected_average_only_in`` does; the others get rows of norm 1.

FVU is of held-out rows by the rule of training, in batches of the same size: by our code, and, of both SAEs,
by the other package's own evaluation. Seeds differ in the start only. The JSON file is written after every
figure, so that an interrupted run leaves what it measured.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared.measuring import Report, parser

from saecache import ActivationCache, load_sae, open_cache
from saecache.common.fvu import FVU
from saecache.configs import load_config
from saecache.harvest import HarvestConfig
from saecache.harvest import run as harvest
from saecache.train import TrainConfig, run
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.schedule import peak_learning_rate

PEER_SCRIPT = Path(__file__).parent / "peers" / "train_one.py"
PEERS = ("SAELens", "dictionary_learning", "sparsify")
VARIANTS = ("topk", "batch_topk")


def ours(
    settings: argparse.Namespace, cache: ActivationCache, variant: str, heldout: torch.Tensor, folder: Path
) -> list[float]:
    """FVU for each seed; the reconstructions are left in ``folder``, one file for each seed."""
    config = TrainConfig.model_validate(
        {
            "variants": [{"kind": variant, "k": settings.k, "seed": list(range(settings.seeds))}],
            "hook": settings.hook,
            "normalization": "unit",
            "num_latents": settings.latents,
            "batch_rows": settings.rows,
            "steps": settings.steps,
            "optimizer": {"learning_rate": settings.learning_rate or "auto"},
            "initialisation": {}
            if settings.encoder_norm is None
            else {"encoder_norm": settings.encoder_norm},
            "schedule": {"warmup": settings.warmup_steps, "decay": "constant"},
            "checkpoint": {"every_steps": settings.steps, "keep": 1},
            "log": {"every_steps": settings.steps, "heldout_rows": 0, "progress": False},
        }
    )
    found = []
    for seed, path in enumerate(run(config, cache, folder / f"run-{variant}").saes.values()):
        sae = load_sae(path)
        measured, rows = FVU(), []
        for x in heldout.split(settings.rows):
            rows.append(sae.decode(sae.encode_sparse(x, as_trained=True)))
            measured.add(x, rows[-1])
        np.save(our_file(folder, variant, seed), torch.cat(rows).numpy())
        found.append(measured.value() or 0.0)
    return found


def rate_of_ours(settings: argparse.Namespace) -> float:
    config = OptimizerConfig(learning_rate=settings.learning_rate or "auto")
    return peak_learning_rate(config, settings.latents)


def our_file(folder: Path, variant: str, seed: int) -> Path:
    """Where the reconstructions of one of our SAEs are."""
    return folder / f"ours-{variant}-{seed}.npy"


def theirs(settings: argparse.Namespace, peer: str, variant: str, folder: Path) -> dict[str, Any] | str:
    """What ``peers/train_one.py`` answers, or why there is nothing."""
    names = (
        "seeds",
        "rows",
        "steps",
        "width",
        "latents",
        "k",
        "learning_rate",
        "warmup_steps",
        "encoder_norm",
        "scaled",
    )
    values = {
        "peer": peer,
        "variant": variant,
        "rows_file": str(folder / "rows.npy"),
        "heldout_file": str(folder / "heldout.npy"),
        "our_files": [str(our_file(folder, variant, seed)) for seed in range(settings.seeds)],
        **{name: getattr(settings, name) for name in names},
    }
    done = subprocess.run(
        [settings.peer_python, PEER_SCRIPT, json.dumps(values)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["without a word"])[-1]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return str(answer["missing"]) if "missing" in answer else answer


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cache", type=Path, default=None)
    options.add_argument("--peer-python", type=Path, default=None)
    options.add_argument("--variant", choices=VARIANTS, action="append", default=[])
    options.add_argument("--hook", default="resid_post.3")
    options.add_argument("--steps", type=int, default=250)
    options.add_argument("--warmup-steps", type=int, default=20)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--latents", type=int, default=1024)
    options.add_argument("--rows", type=int, default=1024)
    options.add_argument("--k", type=int, default=16)
    options.add_argument("--learning-rate", type=number_or_own, default=4e-3)
    options.add_argument("--encoder-norm", type=number_or_own, default=0.5)
    options.add_argument("--scaled", action="store_true", help="give SAELens rows of mean norm √D")
    options.add_argument("--peer", choices=PEERS, action="append", default=[])
    settings = options.parse_args()
    if settings.quick:
        settings.steps, settings.seeds = 20, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = open_cache(settings.cache or harvest_demo(settings, folder / "cache"))
        settings.width = cache.d_model(settings.hook)
        heldout = cache.rows(settings.hook, np.arange(cache.num_rows("heldout")), "heldout", "unit")
        heldout = heldout[: len(heldout) // settings.rows * settings.rows]
        report = Report(
            "fvu",
            settings,
            f"{settings.hook}, F = {settings.latents:,}, D = {settings.width}, k = {settings.k}, "
            f"{settings.steps} steps of {settings.rows:,} rows, "
            f"learning rate {settings.learning_rate or 'its own'}, "
            f"encoder norm {settings.encoder_norm or 'its own'}: FVU of {len(heldout):,} held-out rows",
        )
        np.save(folder / "heldout.npy", heldout.numpy())
        np.save(folder / "rows.npy", batches(settings, cache).numpy())
        for variant in settings.variant or VARIANTS:
            values = ours(settings, cache, variant, heldout, folder)
            report.add("saecache", values, group=variant, decimals=4)
            report.add("learning rate of saecache", [rate_of_ours(settings)], group=variant, decimals=6)
            report.save()
            for peer in (settings.peer or PEERS) if settings.peer_python else ():
                found = theirs(settings, peer, variant, folder)
                if isinstance(found, str):
                    print(f"  {peer}: left out ({found})", flush=True)
                    continue
                report.add(peer, found["fvu"], group=variant, decimals=4)
                report.add(f"learning rate of {peer}", [found["learning_rate"]], group=variant, decimals=6)
                for whose, key in ((peer, "by_their_evaluation"), ("saecache", "ours_by_their_evaluation")):
                    what = f"{whose}, by the evaluation of {peer}"
                    report.add(what, found[key], group=variant, decimals=4)
                report.save()


def harvest_demo(settings: argparse.Namespace, path: Path) -> Path:
    """A cache of the demo's model and text, with as many tokens as the training needs once."""
    tokens = max(50_000, int(1.4 * settings.steps * settings.rows))
    overrides = [f"num_tokens={tokens}", f"hooks=[{settings.hook}]", "heldout_fraction=0.2"]
    return harvest(load_config(HarvestConfig, "demo", overrides, kinds=("harvest",)), path).path


def number_or_own(text: str) -> float | None:
    return None if text == "own" else float(text)


def batches(settings: argparse.Namespace, cache: ActivationCache) -> torch.Tensor:
    """The rows that our training reads, in its order."""
    per_epoch = len(cache) // settings.rows
    found = []
    for step in range(settings.steps):
        epoch, start = divmod(step, per_epoch)
        if start == 0:
            stream = cache.batches(
                settings.hook, settings.rows, 0, epoch, normalization="unit", drop_last=True
            )
        found.append(next(stream).clone())
    return torch.cat(found)


if __name__ == "__main__":
    main()
