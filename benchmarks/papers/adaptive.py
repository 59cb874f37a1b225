"""Whether Mutual and Feature Choice give more latents to rows that are harder to reconstruct.

    python benchmarks/papers/adaptive.py --cache CACHE --runs runs/papers/medium --form medium

A row's difficulty is the error that is left of it if every row gets the same number of latents: its largest
pre-activations, as many as the SAE has active latents in the mean, decoded by the same SAE. Each fifth of the
rows, by difficulty, has its mean number of active latents by the SAE's own thresholds. The SAEs are those of
section choice. What was measured of SAEs that are not in ``--runs`` is kept.
"""

import json
from collections import defaultdict
from math import ceil, exp, floor, log
from pathlib import Path

import numpy as np
import torch
from forms import FORMS, Form
from run import parser, read

from saecache import SAE, load_sae, open_cache
from saecache.store.durable import write_bytes

ARMS = ("mutual", "zipf_after_mutual", "uniform_after_mutual")
ROWS = 16_384  # at most, spread over the held-out text
FIGURE, FVU = "latents of a row", "fvu of the rows"


@torch.no_grad()
def errors_with(sae: SAE, x: torch.Tensor, k: int) -> torch.Tensor:
    """The squared error of each row, float64 [B], with its ``k`` largest pre-activations above 0."""
    largest = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).topk(k, dim=1)
    codes = torch.zeros(len(x), sae.cfg.num_latents).scatter(1, largest.indices, largest.values.clamp_min(0))
    return (sae.decode(codes) - x).double().square().sum(1)


@torch.no_grad()
def measure(sae: SAE, x: torch.Tensor) -> dict[str, dict[str, float]]:
    """What the claims compare, by the end of an arm's name.

    Args:
        x: float32 [B, D], rows as the SAE's cache normalizes them.
    """
    codes = sae.encode(x)
    active = (codes != 0).sum(1).double()
    own = (sae.decode(codes) - x).double().square().sum(1)
    l0 = float(active.mean())
    below, above = (errors_with(sae, x, k) for k in (floor(l0), ceil(l0)))
    part = l0 - floor(l0)
    fixed = exp((1 - part) * log(float(below.sum())) + part * log(float(above.sum())))
    total = float((x - x.mean(0)).double().square().sum())
    by_difficulty, fifth = active[below.argsort()], len(x) // 5
    low, middle, high = np.quantile(active.numpy(), (0.01, 0.5, 0.99))
    return {
        "easiest": {FIGURE: float(by_difficulty[:fifth].mean())},
        "hardest": {FIGURE: float(by_difficulty[-fifth:].mean())},
        "below_median": {FIGURE: float(middle - low)},
        "above_median": {FIGURE: float(high - middle)},
        "by_threshold": {FVU: float(own.sum()) / total},
        "same_for_every_row": {FVU: fixed / total},
    }


def find_saes(runs: Path, form: Form) -> dict[str, list[Path]]:
    """The folders of each arm, ``mutual_k32`` for example: one for each seed, if all are there."""
    found = {}
    for name in (f"{arm}_k{k}" for arm in ARMS for k in form.ks):
        patterns = [f"choice_k*/seed{seed}/{name}_seed{seed}/sae" for seed in form.seeds]
        folders = [folder for pattern in patterns for folder in runs.glob(pattern)]
        if len(folders) == len(form.seeds):
            found[name] = folders
    return found


def main() -> None:
    settings = parser(__doc__).parse_args()
    cache, form = open_cache(settings.cache), FORMS[settings.form]
    results = settings.results / settings.form
    rows = min(ROWS, cache.num_rows("heldout"))
    index = np.arange(rows) * (cache.num_rows("heldout") // rows)  # they stand in the order of the text
    arms = (read(results, "adaptive") or {"adaptive": {"arms": {}}})["adaptive"]["arms"]
    for name, folders in find_saes(settings.runs, form).items():
        figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for folder in folders:
            sae = load_sae(folder)
            x = cache.rows(form.hook, index, "heldout", sae.normalizer.kind)
            for end, values in measure(sae, x).items():
                for figure, value in values.items():
                    figures[end][figure].append(float(f"{value:.6g}"))
        arm, _, k = name.rpartition("_k")
        arms |= {
            f"{arm}_{end}_k{k}": {"seeds": list(form.seeds), "figures": values}
            for end, values in figures.items()
        }
    content = {"adaptive": {"rows": rows, "arms": arms}}
    file = results / "adaptive.json"
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())
    print(f"adaptive: {file}")


if __name__ == "__main__":
    main()
