"""Sampled-SAE's rows of known features: how well each kind reconstructs and what it recovers, by bucket.

    python benchmarks/papers/synthetic.py --runs runs/papers/synthetic --form full

The paper reports an FVE of about 0.99 for BatchTopK on 10,000 rows that it also trains on, with the settings
of its real SAEs (65,536 latents, 50,000 steps). Here rows are held out. BatchTopK alone is then trained on as
few rows, with more latents, and longer, and measured on both sorts of rows; and the best that codes of this
size could do is computed from the true directions (``oracles.py``).
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from arms import with_seeds
from oracles import measure_oracles
from run import parser, read

from saecache import SAE, ActivationCache, load_sae, open_cache
from saecache.common.fvu import FVU
from saecache.evaluate.recovery import measure_recovery
from saecache.evaluate.synthetic import HOOK, SyntheticConfig, remake_ground_truth, write_synthetic
from saecache.store.durable import write_bytes
from saecache.train import TrainConfig, run

K = 60  # the paper's
ORACLE_ROWS = 1024
MEASURED_ROWS = 9_000  # of each split, for the trainings of BatchTopK alone
AUXK = {"k": 2 * K}
BATCH_TOPK = {"kind": "batch_topk", "k": K, "auxk": AUXK}
ARMS: dict[str, dict[str, Any]] = {
    "batch_topk": BATCH_TOPK,
    "topk": {"kind": "topk", "k": K, "auxk": AUXK},
    "mutual": {"kind": "mutual_choice", "k": K, "auxk": AUXK},
    "uniform_feature_choice": {"kind": "feature_choice", "k": K},
    "probabilistic": {"kind": "probabilistic_topk", "k": K},
    "multi_topk": {"kind": "multi_topk", "k": K, "auxk": AUXK},
    "matryoshka": {"kind": "matryoshka_batch_topk", "k": K, "prefixes": [0.25, 0.5, 1.0], "auxk": AUXK},
    "sampled_squared_l2_l10": {
        "kind": "sampled",
        "k": K,
        "score": "squared_l2",
        "pool_factor": 10,
        "auxk": AUXK,
    },
    "sampled_entropy_l10": {"kind": "sampled", "k": K, "score": "entropy", "pool_factor": 10, "auxk": AUXK},
    "sampled_uniform_l10": {"kind": "sampled", "k": K, "score": "uniform", "pool_factor": 10, "auxk": AUXK},
}
FORMS: dict[str, dict[str, Any]] = {
    # rows of the cache, steps, arms, seeds; (rows, latents, steps) of each training of BatchTopK alone
    "medium": {
        "rows": 200_000,
        "steps": 3_000,
        "arms": tuple(ARMS),
        "seeds": (0,),
        "alone": ((200_000, 2048, 600), (200_000, 2048, 6_000), (10_000, 2048, 600)),
    },
    "short": {
        "rows": 20_000,
        "steps": 20,
        "seeds": (0, 1),
        "arms": ("batch_topk", "sampled_squared_l2_l10"),
        "alone": ((10_000, 2048, 20),),
    },
}
FORMS["full"] = FORMS["medium"] | {"seeds": (0, 1)}


def training(variants: list[dict[str, Any]], latents: int, steps: int) -> TrainConfig:
    """The settings of a training; features of both signs need two latents each."""
    return TrainConfig.model_validate(
        {
            "hook": HOOK,
            "normalization": "scale",
            "num_latents": latents,
            "batch_rows": 1024,
            "steps": steps,
            "dead_after_rows": 100_000,
            "optimizer": {"kind": "adam", "learning_rate": 2e-3, "clip_norm": 1.0},
            "schedule": {"warmup": 0.05, "decay": "linear", "decay_start": 0.6},
            "initialisation": {"encoder_norm": 1.0},
            "calibration": {},
            "checkpoint": {"every_steps": max(20, steps // 4), "keep": 1},
            "log": {"every_steps": max(1, steps // 20), "heldout_rows": 0, "progress": False},
            "variants": variants,
        }
    )


def make_cache(rows: int, runs: Path) -> ActivationCache:
    path = runs / f"cache-{rows}"
    write_synthetic(SyntheticConfig(num_rows=rows), path)
    return open_cache(path)


def recover(form: dict[str, Any], cache: ActivationCache, runs: Path) -> dict[str, Any]:
    """Train all arms with all seeds; what they reconstruct and recover, by arm and seed."""
    truth, arms = remake_ground_truth(cache), {name: ARMS[name] for name in form["arms"]}
    config = training(with_seeds(arms, form["seeds"], {}), 2048, form["steps"])
    recovered: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in form["seeds"]:
        variants = tuple(variant for variant in config.variants if variant.seed == seed)
        result = run(config.model_copy(update={"variants": variants}), cache, runs / f"seed{seed}")
        for name, folder in sorted(result.saes.items()):
            found = measure_recovery(load_sae(folder), cache, truth)
            figures = recovered[name.rpartition("_seed")[0]]
            figures["fvu"].append(found.fvu)
            figures["l0"].append(found.l0)
            figures["recovered"].append(found.overall.recovered)
            for bucket, values in found.buckets.items():
                figures[f"recovered {bucket}"].append(values.recovered)
            figures["similarity"].append(found.overall.mean_similarity)
    return {
        "settings": config.model_dump(mode="json", exclude={"variants"}),
        "arms": {name: dict(recovered[name]) for name in form["arms"] if name in recovered},
    }


def train_alone(rows: int, latents: int, steps: int, runs: Path) -> dict[str, Any]:
    """BatchTopK on ``rows`` rows: its FVU on rows that it was trained on, and on others."""
    cache = make_cache(rows, runs)
    config = training(with_seeds({"batch_topk": BATCH_TOPK}, (0,), {}), latents, steps)
    result = run(config, cache, runs / f"alone-{rows}-{latents}-{steps}")
    (folder,) = result.saes.values()
    sae = load_sae(folder)
    return {
        "rows": rows,
        "train_rows": len(cache),
        "latents": latents,
        "steps": steps,
        "epochs": round(steps * config.batch_rows / len(cache), 2),
        **{f"fvu of {split} rows": measure_fvu(sae, cache, split) for split in ("train", "heldout")},
    }


@torch.no_grad()
def measure_fvu(sae: SAE, cache: ActivationCache, split: str) -> float:
    """FVU of the first rows of a split, at inference."""
    fvu, done = FVU(), 0
    rows = min(1000, cache.num_rows(split))
    for x in cache.batches(HOOK, rows, split=split, normalization="scale"):
        fvu.add(x, sae.decode(sae.encode_sparse(x)))
        done += len(x)
        if done >= MEASURED_ROWS:
            break
    return fvu.value() or 0.0


def limits(form: dict[str, Any], cache: ActivationCache, runs: Path) -> dict[str, Any]:
    """What codes of this size can do at all, and how far BatchTopK alone comes."""
    return {
        "oracle": measure_oracles(remake_ground_truth(cache), K, ORACLE_ROWS),
        "alone": [train_alone(*one, runs) for one in form["alone"]],
    }


def main() -> None:
    options = parser(__doc__, cache=False)
    options.add_argument("--limits-only", action="store_true", help="leave the comparison of kinds for later")
    settings = options.parse_args()
    form = FORMS[settings.form]
    file = settings.results / settings.form / "synthetic.json"
    known = read(file.parent, file.stem)
    found = known["synthetic"] if known else {}
    settings.runs.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    for key, measure in (("oracle", limits), ("arms", recover)):
        if key in found or (settings.limits_only and key == "arms"):
            continue
        cache = make_cache(form["rows"], settings.runs)
        found |= {"rows": form["rows"], "heldout_rows": cache.num_rows("heldout")}
        found |= measure(form, cache, settings.runs)
        write_bytes(file, (json.dumps({"synthetic": found}, indent=1) + "\n").encode())
        print(f"synthetic: {file}", flush=True)


if __name__ == "__main__":
    main()
