"""What a steady step may cost on a GPU where two processes share the latents: launches and synchronizations.

An exchange counts as a launch, as with NCCL. What a process alone may cost is in test_budgets.py.
"""

import json
import multiprocessing
from pathlib import Path

import pytest

from ...distributed.processes import SECONDS, free_port
from .sharded_step import step

SIZE, SCALE = 2, 128  # 192 latents of 6 numbers; 32 rows: the interpreter is slow
# Of each process. One that is alone may do 60 launches and 2 synchronizations for TopK, twice that for Mutual
# Choice. Beside them come the exchanges, the choice among the candidates of all processes, and the norms and
# the encoder's sums that each process makes for its own latents. What the processes decide together the host
# has to know: how many candidates a row has at most, whether a guess was low enough, and how many are tied.
BUDGETS: dict[str, tuple[int, int]] = {"topk": (125, 4), "mutual_choice": (175, 13)}


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
    for rank in range(SIZE):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for kind, (launches, syncs) in BUDGETS.items():
            counts = found[kind]
            assert any("distributed/group.py" in name for name, _ in counts["launches"]), "nothing travelled"
            assert sum(n for _, n in counts["launches"]) <= launches, counts["launches"]
            assert sum(n for _, n in counts["syncs"]) <= syncs, counts["syncs"]
