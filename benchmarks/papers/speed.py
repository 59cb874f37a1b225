"""What a step of every kind costs, against a step of TopK, in processor time on one thread.

    python benchmarks/papers/speed.py --cache CACHE --runs runs/papers/medium --form medium

The kinds of the table of every kind take turns, so that other work on the machine slows all of them alike;
processor time depends on it little. The time of a short run is taken off that of a longer one, so that
starting, compiling and saving do not count. Both are early in training, when AuxK has no dead latents yet.
"""

import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import PREFIX, TUNED
from forms import FORMS
from run import PAPER_ZIPF, is_measured, parser
from sections import training_of

from saecache import ActivationCache, open_cache
from saecache.store.durable import write_bytes
from saecache.train import TrainConfig, run

ROUNDS = 3
FEW, MORE = 10, 30  # steps


def seconds(config: TrainConfig, variant: Any, cache: ActivationCache, steps: int) -> float:
    """Processor seconds of a training of one variant."""
    changed = {"variants": (variant,), "steps": steps, "calibration": None}
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        run(config.model_copy(update=changed), cache, Path(folder) / "run")
        return time.process_time() - started


def main() -> None:
    settings = parser(__doc__).parse_args()
    file = settings.results / settings.form / "speed.json"
    if is_measured(file):
        return
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)
    cache, form = open_cache(settings.cache), FORMS[settings.form]
    brief = replace(form, dead_after_rows=8 * form.batch_rows)  # aux_zipf's window ends in so short a run
    configs = [
        training_of(section, brief, {}, PAPER_ZIPF)[0].model_copy(
            update={"dead_after_rows": form.dead_after_rows}
        )
        for section in TUNED
    ]
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
        "rounds": ROUNDS,
        "load_before": load,
        "topk_seconds": [round(value, 5) for value in topk],
        "speed": {  # rows a second, TopK's of the same turn = 1
            name: [round(base / value, 3) for value, base in zip(values, topk, strict=True)]
            for name, values in found.items()
        },
    }
    write_bytes(file, (json.dumps({"speed": content}, indent=1) + "\n").encode())
    print(f"speed: {file}")


if __name__ == "__main__":
    main()
