"""Requests and tokens per minute, shared by all threads that ask one server."""

import threading
import time
from collections.abc import Callable

Clock = Callable[[], float]
Wait = Callable[[float], object]


class Pace:
    """Lets requests begin evenly, so that no minute has more of them, or of their tokens, than allowed.

    Args:
        requests_per_minute, tokens_per_minute: None for no limit.
        clock: seconds that only go forward.
        wait: waits for so many seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Clock = time.monotonic,
        wait: Wait = time.sleep,
    ) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._wait = clock, wait
        self._lock = threading.Lock()
        self._next_request = self._next_tokens = self._paused_until = float("-inf")

    def admit(self, num_tokens: int) -> None:
        """Wait until a request of ``num_tokens`` may begin."""
        with self._lock:
            begin = max(self._clock(), self._next_request, self._next_tokens)
            self._next_request = begin + self._per_request
            self._next_tokens = begin + num_tokens * self._per_token
        while (rest := max(begin, self._paused_until) - self._clock()) > 0:
            self._wait(rest)

    def pause(self, seconds: float) -> None:
        """Let no request begin for so long, because the server asked for it."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)
