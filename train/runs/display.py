"""What a training run shows on stderr: a bar on a terminal, elsewhere a line every so often."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from ...common.progress import SECONDS_BETWEEN_LINES, progress_bar

SHOWN = 5  # variants whose figures fit on a line
FORMS = (("loss", ".4g"), ("fvu", ".3g"), ("l0", ".3g"), ("dead", "d"))
Figures = Callable[[], list[dict[str, Any]]]
"""For each variant the figures so far: loss, fvu, l0, dead."""


class Display:
    """The progress of a run, from the first step on.

    Args:
        num_steps, first_step: of the run, and those that an earlier process did.
        step_rows: rows of a step.
        hidden: show nothing.
    """

    def __init__(self, out: Path, num_steps: int, first_step: int, step_rows: int, *, hidden: bool) -> None:
        self.num_steps, self.step, self.step_rows, self.hidden = num_steps, first_step, step_rows, hidden
        self._first_step, self._started, self._last_line = first_step, monotonic(), -1.0
        self._bar: Any = None
        if first_step and not hidden:
            where = f"step {first_step:,} of {num_steps:,}"
            print(f"{out}: resuming from the checkpoint after {where}", file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the bar, if there is a terminal, for as long as the block runs."""
        if self.hidden or not sys.stderr.isatty():
            yield
            return
        with progress_bar("train", "step", self.num_steps, done=self._first_step) as self._bar:
            yield

    def advance(self, figures: Figures, *, logged: bool = False) -> None:
        """Take note of a finished step; ask for ``figures`` only when they are about to be shown.

        Args:
            logged: the step also ends an interval of the log.
        """
        self.step += 1
        first = self.step == self._first_step + 1
        if self.hidden:
            return
        if self._bar is not None:
            if first or logged:
                self._bar.set_postfix_str(self._text(figures()), refresh=first)
            self._bar.update()
        elif first or self.step == self.num_steps or monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            print(f"{self._progress()}  {self._text(figures())}", file=sys.stderr, flush=True)

    def _progress(self) -> str:
        place, done = f"step {self.step:,}/{self.num_steps:,}", self.step - self._first_step - 1
        if done == 0:  # the first step also compiles what it needs, and says nothing of the others
            self._started = monotonic()
            return place
        per_step = (monotonic() - self._started) / done
        left = int((self.num_steps - self.step) * per_step)
        eta = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"
        return f"{place}  {self.step_rows / per_step:,.0f} rows/s  ETA {eta}"

    @staticmethod
    def _text(lines: list[dict[str, Any]]) -> str:
        """``loss 0.12/0.15  fvu ...``: the figures of the first variants, side by side."""
        if not lines:
            return ""
        parts = (f"{key} {'/'.join(format(one[key], form) for one in lines[:SHOWN])}" for key, form in FORMS)
        more = f"  (and {len(lines) - SHOWN} more variants)" if len(lines) > SHOWN else ""
        return "  ".join(parts) + more
