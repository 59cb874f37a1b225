"""What a step of every kind costs, against a step of TopK: processor time on one thread.

    python benchmarks/papers/speed.py --cache CACHE --runs runs/papers/medium --form medium

The kinds of the table of all take turns. A run of a few steps is taken off a longer one, so that
starting, calibrating and saving do not count. Processor time hardly changes when other programs run too.
"""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arms import FORMS, PREFIX, TUNED
from run import PAPER_ZIPF, parser
from sections import training_of

from saecache import ActivationCache, open_cache
from saecache.store.durable import write_bytes
from saecache.train import TrainConfig, run

ROUNDS = 3
FEW, MORE = 20, 60  # steps


def seconds(config: TrainConfig, variant: Any, cache: ActivationCache, steps: int) -> float:
    """Processor seconds of a training of one variant."""
    changed = {"variants": (variant,), "steps": steps, "calibration": None}
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        run(config.model_copy(update=changed), cache, Path(folder) / "run")
        return time.process_time() - started


def main() -> None:
    settings = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    cache, form = open_cache(settings.cache), FORMS[settings.form]
    configs = [training_of(section, form, {}, PAPER_ZIPF)[0] for section in TUNED]
    trained = [(config, v) for config in configs for v in config.variants if v.seed == form.seeds[0]]
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(ROUNDS + 1):
        for config, variant in trained:
            few, more = (seconds(config, variant, cache, steps) for steps in (FEW, MORE))
            if number:  # the first round compiles
                found[variant.run_name.rpartition("_seed")[0]].append((more - few) / (MORE - FEW))
    topk = found[f"{PREFIX}topk_k{form.ks[-1]}"]
    content = {
        "steps": [FEW, MORE],
        "topk_seconds": round(median(topk), 5),
        "relative": {
            name: [round(value / base, 3) for value, base in zip(values, topk, strict=True)]
            for name, values in found.items()
        },
    }
    file = settings.results / settings.form / "speed.json"
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())
    print(f"speed: {file}")


if __name__ == "__main__":
    main()
