"""How long a step should take when processes on several GPUs share the latents of an SAE, and the rows of a
batch: the table in ``cluster.md`` (a test compares them).

    python docs/cluster_predictions.py

It extends ``predictions.py``: each process does its part of the phases there, and what it exchanges with the
others takes the time of its bytes and messages. Nothing here was measured.

Legend: B rows of a batch, D width of a row, F latents, W processes with a GPU each, R groups of them that
share the rows.
"""

import runpy
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

PREDICTIONS: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("predictions.py")))
B, K = PREDICTIONS["B"], PREDICTIONS["K"]
PAGE = Path(__file__).with_name("cluster.md")
H100 = next(gpu for gpu in PREDICTIONS["GPUS"] if gpu.name == "H100")

WIDTHS = (768, 4096)
LATENTS = (24_576, 262_144, 1 << 20, 1 << 22, 1 << 24, 34_000_000)
PROCESSES = ((1, 1), (8, 1), (64, 1), (64, 8))  # how many, and in how many groups that share the rows
PIECES_PER_PROCESS = 4  # of a running sum: train/latent_shards.py
BYTES_HELD, BYTES_OWNED = 4 + 4, 8  # of each weight of both matrices: itself and its gradient; two moments
BYTES_OF_COPY = 2  # of W_enc, rounded for the screening product


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection between two processes: stated bytes a second one way, the share that is assumed, and the
    time of a message.
    """

    bytes_per_second: float
    share: float
    seconds: float

    def time(self, size: float, messages: int = 1) -> float:
        """The time of ``size`` bytes in so many messages, one after another."""
        return size / (self.bytes_per_second * self.share) + messages * self.seconds


NVLINK = Link(bytes_per_second=450e9, share=0.7, seconds=15e-6)
NETWORK = Link(bytes_per_second=50e9, share=0.7, seconds=25e-6)  # 400 Gbit/s for each GPU
GPUS_OF_A_NODE = 8


def step_seconds(F: int, D: int, W: int, R: int = 1) -> float:
    """A TopK step of ``W`` processes, in ``R`` groups of neighbours that have B / R rows each."""
    sharing, rows = W // R, B / R
    phases: list[Any] = PREDICTIONS["selecting"](
        F / sharing, width=D, rows=rows
    )  # each offers its own K candidates of every row
    phases += PREDICTIONS["learning"](F / sharing, decoded=K / sharing, width=D, rows=rows, updated=F / W)
    working: float = sum(phase.seconds(H100) for phase in phases)
    if sharing > 1:
        working += exchange_seconds(D, sharing, rows)
    return working + (rows_seconds(F, D, W, R) if R > 1 else 0.0)


def exchange_seconds(D: int, W: int, rows: float = B) -> float:
    """The candidates, the running sum that goes from process to process, and the sum that comes back."""
    link = NVLINK if W <= GPUS_OF_A_NODE else NETWORK
    pieces = PIECES_PER_PROCESS * W
    sum_bytes = 4 * rows * D
    candidates = link.time(exchanged_bytes(D, W, rows) - sum_bytes, messages=W - 1)
    chain = (pieces + W - 1) * link.time(sum_bytes / pieces)
    back = link.time(sum_bytes, messages=ceil(log2(W)))
    return candidates + chain + back


def exchanged_bytes(D: int, W: int, rows: float = B) -> float:
    """What a process sends in a TopK step: candidates and their counts to every other one, and one sum."""
    to_each_other = 4 * rows * K + 8 * rows + 4 * D * ceil(64 / W) + 8 * 3 * 64 * ceil(64 / W)
    return float((W - 1) * to_each_other + 4 * rows * D)


def rows_seconds(F: int, D: int, W: int, R: int) -> float:
    """Gradients to the owners of latents, and weights back: of two matrices and a bias, between nodes."""
    parameters = 3
    return 2 * NETWORK.time(row_bytes(F, D, W, R) / 2, messages=parameters * (R - 1))


def row_bytes(F: int, D: int, W: int, R: int) -> float:
    """What a process sends of gradients and weights in a step."""
    return 2 * 4 * (2 * D + 1) * F / W * (R - 1)


def bytes_of_memory(F: int, D: int, W: int, R: int = 1) -> float:
    """What the weights take on each GPU in training."""
    held = (2 * BYTES_HELD + BYTES_OF_COPY) * F * R / W * D
    return held + 2 * BYTES_OWNED * F / W * D


def table() -> str:
    """Markdown."""
    heads = [f"{W} H100{f', rows={R}' * (R > 1)}, D = {D:,}" for D in WIDTHS for W, R in PROCESSES]
    lines = [
        f"| predicted ms of a TopK step (GB of weights on each) | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * len(heads)}",
    ]
    for F in LATENTS:
        cells = [cell(F, D, W, R) for D in WIDTHS for W, R in PROCESSES]
        lines.append(f"| F = {F:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(F: int, D: int, W: int, R: int) -> str:
    """Milliseconds and gigabytes, or that they do not fit into the memory of a GPU."""
    memory = bytes_of_memory(F, D, W, R) / 1e9
    if memory > 70:  # of 80: the batch and the selection need some too
        return f"does not fit ({memory:,.0f})"
    return f"{PREDICTIONS['format_ms'](step_seconds(F, D, W, R))} ({memory:.2g})"


def fill(page: str) -> str:
    """The text of ``cluster.md`` with the table of today between its marks."""
    begin, end = "<!-- predicted -->", "<!-- end of predicted -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")
    print(f"wrote {PAGE}")
