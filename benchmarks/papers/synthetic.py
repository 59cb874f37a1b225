"""Sampled-SAE's rows of known features: how well each kind reconstructs and what it recovers, by bucket.

    python benchmarks/papers/synthetic.py --runs runs/papers/synthetic --form full

The paper reports an FVE of about 0.99 for BatchTopK, on 10,000 rows that it trains on 20,000 times each. Here
rows are held out, and the best that any SAE could do is measured beside: the true codes, and the 60 largest
of each row.
"""

import json
from collections import defaultdict
from typing import Any

import torch
from arms import with_seeds
from run import parser

from saecache import load_sae, open_cache
from saecache.common.fvu import FVU
from saecache.evaluate.recovery import measure_recovery
from saecache.evaluate.synthetic import GroundTruth, SyntheticConfig, remake_ground_truth, write_synthetic
from saecache.store.durable import write_bytes
from saecache.train import TrainConfig, run

K = 60  # the paper's
ORACLE_BLOCKS = 4
AUXK = {"k": 2 * K}
ARMS: dict[str, dict[str, Any]] = {
    "batch_topk": {"kind": "batch_topk", "k": K, "auxk": AUXK},
    "topk": {"kind": "topk", "k": K, "auxk": AUXK},
    "mutual": {"kind": "mutual_choice", "k": K, "auxk": AUXK, "aux_zipf": None},
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
FORMS: dict[str, dict[str, Any]] = {  # rows of the cache, steps, arms
    "full": {"rows": 1_000_000, "steps": 12_000, "arms": tuple(ARMS)},
    "medium": {"rows": 300_000, "steps": 500, "arms": tuple(ARMS)},
    "short": {"rows": 20_000, "steps": 20, "arms": ("batch_topk", "sampled_squared_l2_l10")},
}
SEEDS = (0, 1, 2)


def training(form: dict[str, Any]) -> TrainConfig:
    """The settings of the training: 2,048 latents, as features of both signs need two latents each."""
    arms = {name: ARMS[name] for name in form["arms"]}
    return TrainConfig.model_validate(
        {
            "hook": "synthetic",
            "normalization": "scale",
            "num_latents": 2048,
            "batch_rows": 1024,
            "steps": form["steps"],
            "dead_after_rows": 100_000,
            "optimizer": {"kind": "adam", "learning_rate": 2e-3, "clip_norm": 1.0},
            "schedule": {"warmup": 0.05, "decay": "linear", "decay_start": 0.6},
            "initialisation": {"encoder_norm": 1.0},
            "calibration": {},
            "checkpoint": {"every_steps": max(20, form["steps"] // 4), "keep": 1},
            "log": {"every_steps": max(1, form["steps"] // 20), "heldout_rows": 0, "progress": False},
            "variants": with_seeds(arms, SEEDS, {}),
        }
    )


def oracle(truth: GroundTruth) -> dict[str, float]:
    """FVU of the true codes, and of the 60 largest of each row, decoded by the true directions."""
    every, largest = FVU(), FVU()
    for number, (codes, rows) in enumerate(truth.blocks()):
        if number == ORACLE_BLOCKS:
            break
        every.add(rows, codes @ truth.directions)
        top = codes.abs().topk(K, dim=1).indices
        kept = torch.zeros_like(codes).scatter(1, top, codes.gather(1, top))
        largest.add(rows, kept @ truth.directions)
    return {"fvu of the true codes": every.value() or 0.0, "fvu of the 60 largest": largest.value() or 0.0}


def main() -> None:
    settings = parser(__doc__, cache=False).parse_args()
    form = FORMS[settings.form]
    file = settings.results / settings.form / "synthetic.json"
    if file.is_file():
        print(f"synthetic: measured already ({file})")
        return
    path = settings.runs / "cache"
    settings.runs.mkdir(parents=True, exist_ok=True)
    write_synthetic(SyntheticConfig(num_rows=form["rows"]), path)
    cache = open_cache(path)
    truth, config = remake_ground_truth(cache), training(form)
    result = run(config, cache, settings.runs / "run")
    recovered: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, folder in sorted(result.saes.items()):
        found = measure_recovery(load_sae(folder), cache, truth)
        figures = recovered[name.rpartition("_seed")[0]]
        figures["fvu"].append(found.fvu)
        figures["l0"].append(found.l0)
        figures["recovered"].append(found.overall.recovered)
        for bucket, values in found.buckets.items():
            figures[f"recovered {bucket}"].append(values.recovered)
        figures["similarity"].append(found.overall.mean_similarity)
    content = {
        "synthetic": {
            "rows": form["rows"],
            "heldout_rows": cache.num_rows("heldout"),
            "settings": config.model_dump(mode="json", exclude={"variants"}),
            "oracle": oracle(truth),
            "arms": {name: dict(recovered[name]) for name in form["arms"] if name in recovered},
        }
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
