"""A TopK step of other packages, in turns with ours: those that are installed in this environment.

The glue that runs their trainers is ``benchmarks/peers`` of a clone; a wheel does not have it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..config import Sizes
from ..notes import Notes
from ..timing import Cost, ratios, take_turns
from ..trainees import fitting_latents, make_trainee, make_variant, step_of, unit_rows
from .steps import WARM_UP, timer

PEERS = {"SAELens": "sae_lens", "dictionary_learning": "dictionary_learning", "sparsify": "sparsify"}
GLUE = Path(__file__).parents[2] / "benchmarks" / "peers" / "training_step.py"
KIND = "topk"


class Peer:
    """Another package's trainer in a process of its own, which waits while it is not asked."""

    def __init__(self, python: Path | str, name: str, settings: dict[str, Any]) -> None:
        """Start ``name`` under the interpreter ``python``; ``missing`` then says why it is not there."""
        self.name = name
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(  # noqa: S603
            [python, GLUE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.messages, text=True
        )
        self.missing: str | None = self.ask(peer=name, **settings).get("missing")

    def ask(self, **values: object) -> dict[str, Any]:
        """One question, and its answer; ``missing`` in it is the last thing that the process said."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(values) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"missing": f"its process ended: {self.last_message()}"}

    def last_message(self) -> str:
        """The last line that it wrote to stderr."""
        self.process.wait()
        self.messages.seek(0)
        return (self.messages.read().strip().splitlines() or ["without a word"])[-1]

    def __call__(self, i: int) -> Cost:
        """What step ``i`` costs.

        Raises:
            RuntimeError: its process ended.
        """
        answer = self.ask(step=i)
        if "seconds" not in answer:
            raise RuntimeError(f"{self.name} stopped: {answer['missing']}")
        return Cost(answer["seconds"], answer["cpu_seconds"])

    def close(self) -> None:
        """End its process."""
        self.process.communicate()
        self.messages.close()


def measure_peers(notes: Notes, sizes: Sizes, device: torch.device) -> None:
    """The section ``peers``."""
    if not GLUE.is_file():
        notes.leave_out("other packages", "their glue, benchmarks/peers, is not in a wheel: run from a clone")
        return
    installed = [name for name, module in PEERS.items() if find_spec(module) is not None]
    for name in PEERS.keys() - set(installed):
        notes.leave_out(name, "not installed in this environment")
    latents = fitting_latents(sizes.latents[0], sizes.rows, sizes.width, device)
    settings = {
        "variant": KIND, "latents": latents, "rows": sizes.rows, "width": sizes.width, "k": sizes.k,
        "dead": 0.0, "threads": torch.get_num_threads(), "device": str(device),
    }  # fmt: skip
    for name in notes.each(installed):
        with _started(name, settings) as peer:
            if peer.missing is not None:
                notes.leave_out(name, peer.missing)
                continue
            try:
                costs = _in_turns(notes, peer, sizes, latents, device)
            except RuntimeError as error:
                notes.leave_out(name, str(error))
                continue
        seconds = {who: [cost.seconds for cost in found] for who, found in costs.items()}
        size = f"F = {latents:,}, B = {sizes.rows:,}, D = {sizes.width}, k = {sizes.k}"
        notes.measure(f"TopK step: {size}", name, "ms", [1e3 * s for s in seconds[name]])
        slower = ratios(seconds[name], seconds["saecache"])
        notes.measure(f"TopK step: {size}", f"{name} / saecache", "", slower)


@contextmanager
def _started(name: str, settings: dict[str, Any]) -> Iterator[Peer]:
    with closing(Peer(sys.executable, name, settings)) as peer:
        yield peer


@torch.no_grad()
def _in_turns(
    notes: Notes, peer: Peer, sizes: Sizes, latents: int, device: torch.device
) -> dict[str, list[Cost]]:
    rows, width = sizes.rows, sizes.width
    x = unit_rows(2, rows, width, device)
    variant = make_variant(KIND, sizes.k)
    trainee = make_trainee(variant, rows=rows, latents=latents, width=width, device=device)
    numbers = count()
    ways: dict[str, Callable[[], Cost]] = {
        "saecache": timer(step_of(trainee, x), device, together=1),
        peer.name: lambda: peer(next(numbers)),
    }
    return take_turns(ways, sizes.rounds, WARM_UP, time_left=notes.time_left)
