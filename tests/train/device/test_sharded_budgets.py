"""What a steady step may cost on a GPU where processes share the latents: launches and synchronizations.

The largest of what two processes do; an exchange counts as a launch. Alone see test_budgets.py.
"""

import json
import multiprocessing
from pathlib import Path

import pytest

from ...distributed.processes import SECONDS, free_port
from .sharded_step import step

SIZE, SCALE = 2, 64
BUDGETS: dict[str, tuple[int, int]] = {
    "topk": (60, 2),
    "batch_topk": (60, 2),
    "mutual_choice": (60, 2),
    "feature_choice": (60, 2),
    "matryoshka_batch_topk": (60, 2),
    "sampled": (60, 2),
}
"""Launches and synchronizations of every kind that selects."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_a_sharded_step_stays_within_its_budget(tmp_path: Path) -> None:
    port, context = free_port(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([step.__module__])
    arguments = SIZE, port, list(BUDGETS), SCALE, tmp_path
    started = [context.Process(target=step, args=(rank, *arguments)) for rank in range(SIZE)]
    for process in started:
        process.start()
    for rank, process in enumerate(started):
        process.join(SECONDS)
        assert process.exitcode == 0, f"process {rank}"
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for kind, (launches, syncs) in BUDGETS.items():
            counts = found[kind]
            assert 0 < sum(n for _, n in counts["launches"]) <= launches, counts["launches"]
            assert sum(n for _, n in counts["syncs"]) <= syncs, counts["syncs"]
