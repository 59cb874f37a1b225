"""Training curves out of ``metrics.jsonl``, the log of a run."""

from pathlib import Path
from sys import float_info
from typing import Any

from ...common.errors import UsageError
from ...store.untrusted_files import read_object_lines

CURVES = ("fvu", "l0", "dead")
MAX_POINTS = 300
_LARGEST = float_info.max

Curves = dict[str, list[float | None]]


def read_training_curves(path: Path) -> dict[str, Curves]:
    """Read ``rows`` and the :data:`CURVES` over them by variant, at most about ``MAX_POINTS`` points each.

    If a step occurs twice, because training was resumed, the later line counts. A last line that a killed
    process left unfinished is ignored. A value that a line does not hold is None.

    Raises:
        UsageError: a line in the middle that is not JSON with a step, rows and a variant.
    """
    by_step: dict[str, dict[int, dict[str, Any]]] = {}
    for number, _, record in read_object_lines(path, allow_nan=True):
        if record is None:
            continue
        match record:
            case {"variant": str(variant), "step": int(step)}:
                kept = {key: record.get(key) for key in ("rows", *CURVES)}
                by_step.setdefault(variant, {})[step] = kept
            case _:
                raise UsageError(f"{path}, line {number}: expected a JSON object with step and variant")
    return {variant: _thinned(steps) for variant, steps in by_step.items()}


def _thinned(steps: dict[int, dict[str, Any]]) -> Curves:
    records = [steps[step] for step in sorted(steps)]
    every = -(-len(records) // MAX_POINTS)
    kept = records[::every]
    if records[-1] is not kept[-1]:
        kept.append(records[-1])
    return {key: [_rounded(record.get(key)) for record in kept] for key in ("rows", *CURVES)}


def _rounded(value: Any) -> float | None:
    """A finite number with five significant digits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
