"""Signs of life: how long the other processes are silent, so that nobody waits for one that is gone.

Each process counts in the shared store, from a thread of its own, so that it shows life while it works alone
for hours. A process that shows life is waited for without limit. One that is frozen, or whose machine is
lost, is silent: who waits for it then ends. One that lives and makes no progress warns of that itself.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import torch.distributed as dist

from .environment import store_is_in_first_process
from .stillness import Stillness

BEAT_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between two looks at the others
SILENCE_SECONDS = 20.0  # after which a process counts as lost
_LEAVING_SECONDS = 3.0  # for an exception to end a process in order, once another one is lost
_SURE_SECONDS = 2.5  # of silence are enough once a connection broke: then some process is gone. Twice as many
# if several are silent, because a busy machine may keep one from showing life.
_LEFT = b"left"


@dataclass
class Silence:
    """For how long each of some processes has been silent: the reader of their counts."""

    since: dict[int, float]
    counts: dict[int, bytes] = field(default_factory=dict)
    looked: float = field(default_factory=monotonic)

    def note(self, counts: Sequence[bytes], now: float) -> None:
        """Take note of the counts of all processes, in the order of their ranks."""
        if now - self.looked > SILENCE_SECONDS / 2:  # this process was frozen itself, perhaps all were
            self.since = dict.fromkeys(self.since, now)
        self.looked = now
        for rank in tuple(self.since):
            if counts[rank] == _LEFT:
                del self.since[rank]
            elif counts[rank] != self.counts.get(rank):
                self.since[rank] = now
        self.counts = dict(enumerate(counts))

    def silent(self, seconds: float) -> list[int]:
        """The ranks of those that have been silent for so long."""
        return [rank for rank, since in self.since.items() if self.looked - since >= seconds]


class Heartbeat:
    """Shows that process ``rank`` of ``size`` lives, and watches the others.

    ``lost`` are the processes that were found to be gone, and ``store_is_lost`` says whether nobody can look
    any more. Where this process waits for them in an exchange, which no exception reaches, it ends at once,
    with exit status 1 and a message: for what is on the disk this is like ``kill -9``.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta, still_seconds: float) -> None:
        """Show the first sign of life, and wait for that of all others.

        ``still_seconds`` is how long this process makes no progress until it warns of that.

        Raises:
            RuntimeError: they did not come within ``timeout``.
        """
        self.rank, self.size = rank, size
        self.lost: list[int] = []
        self.store_is_lost = False
        # A connection of its own, so that the beats go on while the other one waits for something.
        self.store = dist.PrefixStore("saecache/beats", store).clone()  # type: ignore[attr-defined]
        self._keys = [str(other) for other in range(size)]
        self.store.set(str(rank), "0")
        self.store.wait(self._keys, timeout)
        self.store.set_timeout(timedelta(seconds=SILENCE_SECONDS))
        self._waiting_since: float | None = None
        self._under_way: tuple[float, Callable[[], bool]] | None = None
        self._stillness = Stillness(rank, still_seconds)
        self._leaving = threading.Event()
        self._answered = monotonic()  # when the store did last
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """A block in which this process waits for others."""
        self._waiting_since = monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def watch(self, is_done: Callable[[], bool]) -> None:
        """An exchange was started that a device ends on its own: this process waits for it sooner or later.

        The host waits wherever it next reads from the device, and no exception reaches it there.
        """
        self._under_way = monotonic(), is_done

    def waiting_since(self) -> float | None:
        """Since when this process has waited for others, if it does."""
        since, under_way = self._waiting_since, self._under_way
        if since is None and under_way is not None:
            with suppress(RuntimeError):  # the device's own failure, which the host meets by itself
                return None if under_way[1]() else under_way[0]
        return since

    def find_lost(self) -> list[int]:
        """The processes that are gone, after a connection broke; none if all show life."""
        began, silence = monotonic(), self._nobody_silent()
        with self.exchange():
            self._look(silence)
            first = silence.looked
            still: list[int] = []
            while not self.lost and not self.store_is_lost:
                sleep(BEAT_SECONDS / 2)
                self._look(silence)
                still = [rank for rank, since in silence.since.items() if since <= first]
                seconds = monotonic() - began
                if not still or seconds > (_SURE_SECONDS if len(still) == 1 else 2 * _SURE_SECONDS):
                    break
        if not self.lost and not self.store_is_lost:
            self.lost = still
        return self.lost

    def leave(self) -> None:
        """Say that this process ends in order."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(_LEAVING_SECONDS)
        self._say_left()

    def _say_left(self) -> None:
        if not self.store_is_lost:
            with suppress(RuntimeError):
                self.store.set(str(self.rank), _LEFT.decode())

    def _beat(self) -> None:
        """Count, and look at the others. If the store stands still, so does this thread."""
        number, looked, silence = 0, monotonic(), self._nobody_silent()
        while not self.store_is_lost and not self._leaving.wait(BEAT_SECONDS):
            number += 1
            try:
                self.store.set(str(self.rank), str(number))
            except RuntimeError:
                self._lose_store()
            if monotonic() - looked >= _LOOK_SECONDS:
                self._look(silence)
                looked = monotonic()
                self.lost = self.lost or silence.silent(SILENCE_SECONDS)

    def _watch(self) -> None:
        """Notice that the store or this process stands still, and end a process that waits for a lost one."""
        woke = monotonic()
        lost_since: float | None = None
        while not self._leaving.wait(BEAT_SECONDS):
            before, woke = woke, monotonic()
            if woke - before > SILENCE_SECONDS / 2:  # as in Silence
                self._answered = woke
            elif woke - self._answered >= SILENCE_SECONDS:
                self._lose_store()
            if lost_since is None and (self.lost or self.store_is_lost):
                lost_since = woke
            since = self.waiting_since()
            if (warning := self._stillness.look(waiting=since is not None)) is not None:
                _say(f"warning: {warning}")
            # The first process may hold the store: the others find out for themselves before it goes.
            patience = _LEAVING_SECONDS + (0 if self.rank else _LOOK_SECONDS)
            if lost_since and since and woke - max(since, lost_since) >= patience:
                _say(f"error in process {self.rank}: {describe_lost(self.lost)}")
                self._say_left()
                os._exit(1)

    def _nobody_silent(self) -> Silence:
        now = monotonic()
        return Silence({rank: now for rank in range(self.size) if rank != self.rank}, looked=now)

    def _look(self, silence: Silence) -> None:
        try:
            silence.note(self.store.multi_get(self._keys), monotonic())
            self._answered = monotonic()
        except RuntimeError:
            self._lose_store()

    def _lose_store(self) -> None:
        self.store_is_lost = True
        if store_is_in_first_process() and self.rank:
            self.lost = self.lost or [0]


def _say(text: str) -> None:
    """Say something from a thread, whatever the main thread does with the standard streams."""
    if sys.__stderr__ is not None:
        print(text, file=sys.__stderr__, flush=True)


def describe_lost(ranks: Sequence[int], why: str = "") -> str:
    """The message for a lost process; ``why`` is what the connection says of it."""
    who = "another process"
    if ranks:
        who = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    verbs = "are gone or do not answer" if len(ranks) > 1 else "is gone or does not answer"
    detail = f" ({why})" if why else f" for {SILENCE_SECONDS:g} seconds"
    return (
        f"{who} of this run {verbs}{detail}; see its message, if it has left one. The same command continues"
    )
