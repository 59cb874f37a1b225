"""Metrics of training: sums over an interval of steps, which become a line of metrics.jsonl per variant.

Legend: D model width, F latents.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...common.fvu import FVU, fvu
from ...store.durable import replacing, write_all
from ...store.untrusted_files import read_object_lines
from ..sae import SAE
from ..variants.base.rows import Outcome
from .reading import Inputs, TargetVariance

MAX_L0 = 4096  # rows with more active latents count as so many in the quantiles (not in the mean)
MOST_UNCOUNTED = 1 << 20  # rows whose numbers of active latents wait to be counted: 8 MB
HELDOUT_ROWS = 4096  # rows measured at a time
QUANTILES = {"l0_p05": 0.05, "l0_p50": 0.5, "l0_p95": 0.95}


class Interval:
    """Sums over the steps of an interval for one variant; all variants share the :class:`.reading.Inputs`.

    Numbers of active latents stay on the device of the rows, and are counted together now and then; their
    sums are whole numbers, so that it does not matter when. All else is in main memory.
    """

    def __init__(self, num_latents: int, device: torch.device) -> None:
        self.steps = torch.zeros((), dtype=torch.int64)
        self.losses: dict[str, Tensor] = {}
        self.squared_error = torch.zeros((), dtype=torch.float64)
        self.active = torch.zeros((), dtype=torch.int64, device=device)
        self.l0_histogram = torch.zeros(min(num_latents, MAX_L0) + 1, dtype=torch.int64, device=device)
        self.grad_norm = torch.zeros((), dtype=torch.float64)
        self._uncounted: list[Tensor] = []  # numbers of active latents, each int64 [rows]

    def add(self, outcome: Outcome, grad_norm: Tensor) -> None:
        """Add one step, whose losses, error and norm are in main memory."""
        self.steps += 1
        for name, value in outcome.losses.items():
            self.losses[name] = self.losses.get(name, 0) + value
        self.squared_error += outcome.squared_error
        self.grad_norm += grad_norm
        self._uncounted += outcome.row_l0
        if sum(map(len, self._uncounted)) > MOST_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        if not uncounted:
            return
        l0, largest = torch.cat(uncounted), self.l0_histogram.numel() - 1
        self.active += l0.sum()
        self.l0_histogram += torch.bincount(l0.clamp(max=largest), minlength=largest + 1)

    def summary(self, inputs: TargetVariance) -> dict[str, float]:
        """Means over steps (losses, gradient norm) and rows (L0); FVU = error / variance around the mean."""
        self._count()
        steps, rows = int(self.steps), int(inputs.rows)
        losses = {f"loss_{name}": float(value) / steps for name, value in sorted(self.losses.items())}
        return {
            "loss": sum(losses.values()),
            **losses,
            "fvu": fvu(float(self.squared_error), inputs.total()) or 0.0,
            "l0": int(self.active) / rows,
            **histogram_quantiles(self.l0_histogram, QUANTILES),
            "grad_norm": float(self.grad_norm) / steps,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The live state, for checkpoints and for :func:`reset`."""
        self._count()
        return {
            "steps": self.steps,
            "squared_error": self.squared_error,
            "active": self.active,
            "l0_histogram": self.l0_histogram,
            "grad_norm": self.grad_norm,
            **{f"losses.{name}": value for name, value in self.losses.items()},
        }


def reset(inputs: Inputs, intervals: Iterable[Interval]) -> None:
    """Start the next interval."""
    everything: list[Inputs | Interval] = [inputs, *intervals]
    for sums in everything:
        for tensor in sums.tensors().values():
            tensor.zero_()


def heldout_metrics(sae: SAE, x: Tensor, target: Tensor | None = None) -> dict[str, float]:
    """FVU and mean L0 of normalized held-out rows ``x`` [n, D] under the SAE's inference rule.

    ``target`` [n, O] is what a transcoder predicts from them; None: the rows themselves.
    """
    found, active = FVU(), 0
    targets = torch.split(x if target is None else target, HELDOUT_ROWS)
    for part, wanted in zip(torch.split(x, HELDOUT_ROWS), targets, strict=True):
        codes = sae.encode_sparse(part)
        active += int(sae.shards.sum((codes.value != 0).sum()))
        found.add(wanted, sae.predict(codes, part))
    return {"heldout_fvu": found.value() or 0.0, "heldout_l0": active / x.shape[0]}


def histogram_quantiles(histogram: Tensor, quantiles: Mapping[str, float]) -> dict[str, float]:
    """The given quantiles by name, from counts of the values 0, 1, ...: int64 [values]."""
    cumulative = histogram.cumsum(0)
    total = int(cumulative[-1])
    return {name: int((cumulative < q * total).sum()) for name, q in quantiles.items()}


_NAMES = ("step", "variant")  # of a line, which every line has


def _is_figure(value: Any) -> bool:
    """Whether ``value`` is a number that float64 holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line. Lines are only appended; resuming cuts later ones off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append ``lines`` durably, so that no checkpoint is ahead of its metrics."""
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def last_lines(self) -> dict[str, dict[str, Any]]:
        """The step, the variant and the figures of the last line of each variant; none of a run that never
        logged.

        What is not a finite number is no figure, and is left out: the file may have been edited.

        Raises:
            UsageError: a line is damaged.
        """
        last = {line["variant"]: line for _, line in self._lines()}
        return {
            name: {key: value for key, value in line.items() if key in _NAMES or _is_figure(value)}
            for name, line in last.items()
        }

    def cut_after(self, step: int) -> None:
        """Drop the lines of later steps, and a line that a crash left unfinished.

        Raises:
            UsageError: a line is damaged.
        """
        if not self.path.exists():
            return
        with replacing(self.path) as file:
            for line, values in self._lines():
                if values["step"] <= step:
                    write_all(file, line)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each line, as bytes and as values with a step and a variant."""
        try:
            for number, line, values in read_object_lines(self.path):
                if (
                    values is None
                    or type(values.get("step")) is not int
                    or type(values.get("variant")) is not str
                ):
                    raise UsageError(
                        f"{self.path}, line {number}: expected a JSON object with step and variant, got "
                        f"{line[:40]!r}; remove the line, or move the file away"
                    )
                yield line, values
        except FileNotFoundError:
            return
