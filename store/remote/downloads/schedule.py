"""What an epoch will need, downloaded before it is needed and kept until it is."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from ...manifest import FileInfo
from .pinned_file import PinnedFile

_MOST_OVERTAKEN = 16  # files

Ahead = Future[PinnedFile | None]
"""A download: the file is held as long as somebody has this; None when there is no room for it now."""


class Schedule:
    """The files that one epoch needs, in order.

    Args:
        files: in the order in which they are first needed.
        share: (bytes, files) that may be ahead of what is needed, now.
        start: begins a download; told whether nothing else is ahead.
    """

    def __init__(
        self,
        files: list[FileInfo],
        share: Callable[[], tuple[int, int]],
        start: Callable[[FileInfo, bool], Ahead],
    ) -> None:
        self._files = files
        self._places = {file.path: place for place, file in enumerate(files)}
        self._share = share
        self._start = start
        self._lock = threading.Lock()
        self._begun: dict[int, Ahead] = {}  # by place: those that nobody has reached yet
        self._needed = self._next = 0  # places: after the last that was reached, and of the next to begin
        self._closed = False

    def fill(self) -> None:
        """Begin downloads up to the share; one always."""
        most_bytes, most_files = self._share()
        with self._lock:
            self._drop_overtaken(most_bytes)
            self._next = min([self._next, *self._take_out_refused()])
            ahead = [self._files[place].size for place in self._begun if place >= self._needed]
            while not self._closed and self._next < len(self._files):
                if self._next not in self._begun:
                    size = self._files[self._next].size
                    if ahead and (sum(ahead) + size > most_bytes or len(ahead) >= most_files):
                        return
                    self._begun[self._next] = self._start(self._files[self._next], not ahead)
                    ahead.append(size)
                self._next += 1

    def reached(self, path: str) -> Ahead | None:
        """``path`` is needed now. Returns what holds it, to be dropped once it is in use."""
        place = self._places.get(path)
        if place is None:
            return None
        with self._lock:
            ahead = self._begun.pop(place, None)
            self._needed = max(self._needed, place + 1)
            self._next = max(self._next, self._needed)
        self.fill()
        return ahead

    def cancel(self) -> list[str]:
        """Downloads that did not begin are not made; the paths of those that did, and nobody waits for."""
        with self._lock:
            self._closed = True
            left = [self._files[place].path for place, ahead in self._begun.items() if not ahead.cancel()]
            self._begun.clear()
            return left

    def _drop_overtaken(self, most_bytes: int) -> None:
        """Files whose turn seems over: read in another thread and needed soon, or open since before."""
        overtaken = [place for place in self._begun if place < self._needed]
        total = sum(self._files[place].size for place in overtaken)
        for place in sorted(overtaken):
            if total <= most_bytes and len(overtaken) <= _MOST_OVERTAKEN:
                return
            overtaken.remove(place)
            total -= self._files[place].size
            del self._begun[place]

    def _take_out_refused(self) -> list[int]:
        """Places of files for which there was no room: to be tried again."""
        refused = [
            place
            for place, ahead in self._begun.items()
            if ahead.done() and not ahead.cancelled() and not ahead.exception() and ahead.result() is None
        ]
        for place in refused:
            del self._begun[place]
        return [place for place in refused if place >= self._needed]
