"""Notices that this process lives but makes no progress, as in a read from a network disk that never returns.

Others cannot tell that from work that takes long, so each process watches itself: it stands still if it is
not waiting for the others, uses next to no processor time, and its main thread is where it was before.
"""

import os
import platform
import sys
import threading
import time
from pathlib import Path
from types import FrameType

BUSY_SHARE = 0.005  # of the time; signs of life take a tenth of that
SHOWN_CALLS = 4
_PACKAGE = str(Path(__file__).resolve().parent.parent)

Place = tuple[tuple[str, int, str], ...]
"""File, line and function of some calls of the main thread, the innermost first."""


class Stillness:
    """Whether this process has stood at one place for long; :meth:`look` says so once for each place."""

    def __init__(self, rank: int, seconds: float) -> None:
        """``rank`` is that of this process; after ``seconds`` at one place it counts as standing still."""
        self._rank, self._seconds = rank, seconds
        self._main = threading.main_thread().ident
        self._place: Place = ()
        self._since, self._used = time.monotonic(), time.process_time()
        self._said = False

    def look(self, *, waiting: bool) -> str | None:
        """The warning to give, if this process has begun to count as standing still since the last look.

        Args:
            waiting: it waits for other processes, so that it is they who must move.
        """
        now, used, place = time.monotonic(), time.process_time(), find_place(self._main)
        busy = used - self._used > BUSY_SHARE * max(now - self._since, 1.0)
        if waiting or busy or place != self._place:
            self._place, self._since, self._used, self._said = place, now, used, False
            return None
        if self._said or now - self._since < self._seconds:
            return None
        self._said = True
        where = ", called by ".join(f"{function} ({file}:{line})" for file, line, function in place)
        return (
            f"process {self._rank} (pid {os.getpid()} on {platform.node()}) has made no progress for "
            f"{self._seconds / 60:g} minutes, and the others wait for it. It is in {where}. If it waits for "
            f"a disk or a server that does not come back, end it with kill -9 {os.getpid()}, and run the "
            "same command again, which continues"
        )


def find_place(thread: int | None) -> Place:
    """Where a thread is: the innermost of its calls, and the innermost of those in this package."""
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    place: list[tuple[str, int, str]] = []
    while frame is not None and len(place) < SHOWN_CALLS:
        path = Path(frame.f_code.co_filename)
        if not place or path.is_relative_to(_PACKAGE):
            place.append(("/".join(path.parts[-2:]), frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(place)
