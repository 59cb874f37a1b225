"""Progress bars: one look and one rhythm for every command, on stderr."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0  # without a terminal every update is a line of a log


def progress_bar(
    what: str,
    unit: str,
    total: float | None = None,
    *,
    done: float = 0,
    delay: float = 0,
    hidden: bool = False,
) -> "tqdm[Any]":
    """A tqdm bar that counts ``unit`` ("B" for bytes); use it in a ``with`` block.

    Args:
        total: None when it is not known yet.
        done: what an interrupted run did before.
        delay: seconds before the bar is first drawn.
        hidden: draw nothing.
    """
    from tqdm import tqdm

    rhythm = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(
        desc=what, unit=unit, unit_scale=unit in ("B", "row", "tok"), total=total, initial=done,
        delay=delay, mininterval=rhythm, smoothing=0.1, disable=hidden,
    )  # fmt: skip
