"""What the three papers claim, on the demo cache: trains the scaled-down recipes, writes a page of results.

    saecache harvest demo --set num_tokens=120_000 --set hooks=[resid_post.3] --out demo/cache
    python benchmarks/papers/claims.py --cache demo/cache --runs runs/claims [--only SECTION]... [--out FILE]

Sections: choice, probabilistic, sampled, synthetic. Each trains every variant of its recipe with three seeds
in one pass, smaller than the recipe (``SECTIONS`` says how), and measures the SAEs at inference; shipped
trains a recipe as it is. Finished runs are not repeated; the page is written from whatever sections are
there.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from verdicts import VERDICTS

from saecache import ActivationCache, load_sae, open_cache
from saecache.common.fvu import FVU
from saecache.configs import load_config
from saecache.evaluate.recovery import measure_recovery
from saecache.evaluate.synthetic import GroundTruth, SyntheticConfig, remake_ground_truth, write_synthetic
from saecache.train import SAE, TrainConfig, run
from saecache.train.variants.losses.aux_zipf import AuxZipf

SEEDS = (0, 1, 2)
ROWS = 20_000  # of training, which dead and dying latents are counted on


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    variants: Mapping[str, Any] = field(default_factory=dict)  # put into every variant that has the setting
    left_out: tuple[str, ...] = ()  # variants by the beginning of their names


SMALL = {
    "batch_rows": 1024,
    "dead_after_rows": 50_000,
    "optimizer.learning_rate": 3e-3,
    "schedule.decay": "linear",
    "schedule.decay_start": 0.6,
    "calibration": {},  # all rules at the L0 they were trained for
    "checkpoint.every_steps": 100,
    "log.heldout_every_steps": None,
    "log.every_steps": 50,
}
SECTIONS = {
    "choice": Section(
        title="Mutual and Feature Choice",
        recipe="mutual-and-feature-choice-demo",
        settings={**SMALL, "steps": 300},
        variants={
            "k": 4,
            "zipf.rounding": "carry",
            "window_rows": 30_000,
            "mutual_choice.window_rows": 30_000,
        },
        left_out=("relu",),
    ),
    "probabilistic": Section(
        title="Probabilistic TopK",
        recipe="probabilistic-topk-demo",
        settings={**SMALL, "steps": 150, "num_latents": 2048, "calibration": None},
        left_out=("relu", "gated"),
    ),
    "sampled": Section(
        title="Sampled-SAE",
        recipe="sampled-sae-demo",
        settings={**SMALL, "steps": 150},
        left_out=tuple(f"sampled_{s}_l{n}_" for s in ("squared_l2", "entropy", "uniform") for n in (3, 30)),
    ),
    "synthetic": Section(
        title="Sampled-SAE on known features",
        recipe="sampled-sae-synthetic",
        settings={**SMALL, "steps": 300},
        left_out=tuple(f"sampled_{score}_l3_" for score in ("squared_l2", "entropy", "uniform")),
    ),
    "shipped": Section(
        title="Probabilistic TopK, the recipe as shipped", recipe="probabilistic-topk-demo", seeds=(0,)
    ),
}


def config_of(section: Section) -> TrainConfig:
    config = load_config(TrainConfig, section.recipe, kinds=("papers",)).model_dump(mode="json")
    for key, value in section.settings.items():
        put(config, key, value)
    kept = []
    for variant, name in zip(config["variants"], names(config), strict=True):
        if name.startswith(section.left_out) and section.left_out:
            continue
        for key, value in section.variants.items():
            put(variant, key, value, only_there=True)
        if "k" in section.variants:
            name = re.sub("_k[0-9]+", f"_k{variant['k']}", name)
        kept.append({**variant, "seed": list(section.seeds), "name": name + "_seed{seed}"})
    return TrainConfig.model_validate({**config, "variants": kept})


def names(config: Mapping[str, Any]) -> list[str]:
    return [variant.run_name for variant in TrainConfig.model_validate(config).variants]


def put(values: dict[str, Any], key: str, value: Any, *, only_there: bool = False) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.get(parent) or {}
    if last in values and (not only_there or values[last] is not None):
        values[last] = value


@torch.no_grad()
def measured(sae: SAE, cache: ActivationCache, batch_rows: int) -> dict[str, float]:
    """At inference: FVU, MSE and L0 of the held-out rows; dead, dying and dense latents on training rows."""
    kind = sae.cfg.normalization["kind"]
    x = cache.rows(sae.cfg.hook, np.arange(cache.num_rows("heldout")), "heldout", kind)
    reconstruction = FVU()
    reconstruction.add(x, sae(x))
    density = torch.zeros(sae.cfg.num_latents, dtype=torch.int64)
    for part in cache.rows(sae.cfg.hook, np.arange(min(ROWS, len(cache))), "train", kind).split(4096):
        codes = sae.encode_sparse(part)
        density += codes.keep(codes.value != 0).count_per_latent()
    share = density / min(ROWS, len(cache))
    k = sae.cfg.k or float(share.sum())
    return {
        "fvu": reconstruction.value() or 0.0,
        "mse": reconstruction.squared_error / x.numel(),
        "l0": float((sae.encode(x) != 0).sum() / len(x)),
        "dead": float((density == 0).sum()),
        "dying": float(AuxZipf().dying(share, k, batch_rows).numel()),
        "over_10": float((share > 0.1).float().mean()),
    }


def recovered(sae: SAE, cache: ActivationCache, truth: GroundTruth) -> dict[str, float]:
    found = measure_recovery(sae, cache, truth)
    buckets = {f"recovered {name}": bucket.recovered for name, bucket in found.buckets.items()}
    nan = float("nan")
    return {
        "fvu": found.fvu,
        "l0": found.l0,
        "recovered": found.overall.recovered,
        **buckets,
        "similarity": found.overall.mean_similarity,
        "fidelity": nan if found.fidelity is None else found.fidelity,
        "fidelity of logarithms": nan if found.fidelity_log is None else found.fidelity_log,
    }


def results_of(section: Section, cache: ActivationCache, out: Path) -> dict[str, dict[str, list[float]]]:
    """Variant -> figure -> its value for each seed."""
    config = config_of(section)
    result = run(config, cache, out)
    truth = remake_ground_truth(cache) if "synthetic" in cache.manifest.identity else None
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, folder in result.saes.items():
        sae = load_sae(folder)
        figures = measured(sae, cache, config.batch_rows) if truth is None else recovered(sae, cache, truth)
        for figure, value in figures.items():
            found[name.rpartition("_seed")[0]][figure].append(value)
    for name in result.failed:
        found[name.rpartition("_seed")[0]]["failed"].append(1.0)
    return found


def alive_over_training(run_dir: Path) -> dict[str, dict[int, list[float]]]:
    """Variant -> step -> alive latents for each seed."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        found[line["variant"].rpartition("_seed")[0]][line["step"]].append(line["alive"])
    return found


def shown(values: list[float]) -> str:
    """Mean and spread; a dash where a figure is not defined for every seed."""
    if not all(map(isfinite, values)):
        return "–"
    digits = 0 if max(map(abs, values)) >= 100 else 2 if max(map(abs, values)) >= 10 else 4
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(found: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    figures = list(next(iter(found.values())))
    lines = [f"| variant | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for name, values in found.items():
        cells = (shown(values[figure]) if values.get(figure) else "failed" for figure in figures)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


INTRODUCTION = f"""\
The SAEs here are small and the runs short: a claim that does not come out may still hold at the papers'
sizes. Figures are means ± standard deviations over seeds. A verdict needs a difference larger than both
standard deviations together, with the same sign for every seed. The page is made by these two
commands; the script holds every setting.

```bash
saecache harvest demo --set num_tokens=120_000 --set hooks=[resid_post.3] --out demo/cache
python benchmarks/papers/claims.py --cache demo/cache --runs runs/claims --out docs/papers.md
```

`fvu`, `mse` and `l0` are of inference on held-out rows. `dead` latents are active on none of {ROWS:,}
training rows, `dying` ones follow Definition 3.1 of Mutual and Feature Choice on the same rows (at most
a quarter of all latents can be dying), and `over_10` is the share of latents that are active on more
than 10 % of these rows.\
""".splitlines()


def page(runs: Path) -> str:
    lines = [
        "# What the papers claim, and what comes out on the demo cache",
        "",
        *INTRODUCTION,
    ]
    for name, section in SECTIONS.items():
        file = runs / f"{name}.json"
        if not file.is_file():
            continue
        saved = json.loads(file.read_text())
        lines += [
            "",
            f"## {section.title}",
            "",
            f"`papers/{section.recipe}`{settings_text(section)}; {len(section.seeds)} "
            f"{'seeds' if len(section.seeds) > 1 else 'seed'}.",
            "",
        ]
        lines += table(saved["results"])
        if name in VERDICTS:
            lines += ["", *(f"- {verdict}" for verdict in VERDICTS[name](saved["results"]))]
        if name == "probabilistic":
            lines += ["", "Alive latents over training (by the running count of the training log):", ""]
            steps = sorted(next(iter(saved["alive"].values())), key=int)
            lines += [
                f"| variant | {' | '.join(f'step {s}' for s in steps)} |",
                "|---" * (len(steps) + 1) + "|",
            ]
            for variant, by_step in saved["alive"].items():
                lines.append(f"| {variant} | {' | '.join(shown(by_step[step]) for step in steps)} |")
    return "\n".join(lines) + "\n"


def settings_text(section: Section) -> str:
    changed = {**section.settings, **{f"variants.*.{key}": value for key, value in section.variants.items()}}
    if not changed:
        return ""
    return " with " + ", ".join(f"`{key}={json.dumps(value)}`" for key, value in changed.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", choices=tuple(SECTIONS), action="append", default=[])
    parser.add_argument("--synthetic-rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=None, help="the page; stdout when not given")
    settings = parser.parse_args()
    settings.runs.mkdir(parents=True, exist_ok=True)
    for name in settings.only or SECTIONS:
        cache_path = settings.cache
        if name == "synthetic":
            cache_path = settings.runs / f"synthetic-{settings.synthetic_rows}"
            write_synthetic(SyntheticConfig(num_rows=settings.synthetic_rows), cache_path)
        results = results_of(SECTIONS[name], open_cache(cache_path), settings.runs / name)
        saved = {"results": results, "alive": alive_over_training(settings.runs / name)}
        (settings.runs / f"{name}.json").write_text(json.dumps(saved, indent=1))
    text = page(settings.runs)
    if settings.out is None:
        print(text)
    else:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(text)


if __name__ == "__main__":
    main()
