"""Training curves for the report, out of a run's ``metrics.jsonl``."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from ..common.errors import UsageError

LOG_NAME = "metrics.jsonl"
CURVES = ("fvu", "l0", "dead")
MAX_POINTS = 300

Curves = dict[str, list[float | None]]


def read_training_curves(path: Path) -> dict[str, Curves]:
    """By variant: ``rows`` and the :data:`CURVES` over them, at most about ``MAX_POINTS`` each.

    Where a step occurs twice, after training was resumed, the later line counts. A last line without its end,
    as a killed process leaves it, is passed over; None stands for what a line does not hold.

    Raises:
        UsageError: a line in the middle that is not JSON with a step, rows and a variant.
    """
    by_step: dict[str, dict[int, dict[str, Any]]] = {}
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip() or number == len(lines):
            continue
        try:
            record = json.loads(line)
            by_step.setdefault(str(record["variant"]), {})[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}, line {number}: expected a JSON object with step and variant") from None
    return {variant: _curves(steps) for variant, steps in by_step.items()}


def _curves(steps: dict[int, dict[str, Any]]) -> Curves:
    records = [steps[step] for step in sorted(steps)]
    every = -(-len(records) // MAX_POINTS)
    kept = records[::every]
    if records[-1] is not kept[-1]:
        kept.append(records[-1])
    return {key: [_number(record.get(key)) for record in kept] for key in ("rows", *CURVES)}


def _number(value: Any) -> float | None:
    """Five significant digits of a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
