"""How long a transfer waits before it tries again, and before it gives up."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig


@dataclass(frozen=True)
class Patience:
    """Seconds and attempts. A request that moves no byte for ``stall_seconds`` is made again."""

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    upload_seconds: float = 120.0  # for one part, body and answer: a slow uplink is not a stall
    retry_seconds: float = 180.0  # after this, a request that keeps failing is given up
    first_retry_seconds: float = 15.0  # the same, until the first answer: a wrong endpoint is said soon
    first_backoff_seconds: float = 0.1  # between tries; doubles each time
    max_backoff_seconds: float = 15.0
    max_retries: int = 10  # of one request
    max_attempts: int = 4  # of one object: read again after wrong bytes

    def client(self, *, writing: bool, allow_http: bool) -> "ClientConfig":
        """Timeouts of one HTTP client."""
        quiet = self.upload_seconds if writing else self.stall_seconds
        return {
            "connect_timeout": timedelta(seconds=self.connect_seconds),
            "read_timeout": timedelta(seconds=quiet),
            "timeout": timedelta(hours=12),  # of a whole body; stalls are what ends a request
            "allow_http": allow_http,
            "user_agent": "saecache",
        }

    def pause_seconds(self, attempt: int) -> float:
        """Before attempt number ``attempt + 1`` of one object."""
        return min(self.first_backoff_seconds * 2.0**attempt, self.max_backoff_seconds)

    def retries(self, *, writing: bool, proven: bool) -> "RetryConfig":
        """Retries of one request, with backoff and jitter."""
        seconds = self.retry_seconds if proven else self.first_retry_seconds
        if writing:
            seconds = max(seconds, 3 * self.upload_seconds)  # else the first stall would be the last
        return {
            "max_retries": self.max_retries,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {
                "init_backoff": timedelta(seconds=self.first_backoff_seconds),
                "max_backoff": timedelta(seconds=min(self.max_backoff_seconds, 15 if proven else 2)),
                "base": 2,
            },
        }
