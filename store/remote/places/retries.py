"""How long a request may take, and the one place that decides whether it is made again.

The object store library repeats nothing for us, with one exception: the parts of a large upload, because
beginning such an upload anew would cost all of its bytes.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from .failures import RemoteError, WrongBytesError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """Seconds and attempts of one request; a request ends at the latest after ``upload_seconds``.

    The body of a large object may take longer, but it must bring ``LEAST_BODY_BYTES`` in every
    ``stall_seconds``.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0  # without a byte of the answer
    upload_seconds: float = 120.0  # body and answer of one request: a slow uplink is not a stall
    retry_seconds: float = 180.0  # after this, a request that keeps failing is given up
    first_retry_seconds: float = 15.0  # the same until the first answer: a wrong endpoint is reported soon
    first_backoff_seconds: float = 0.1  # between attempts; doubles each time
    max_backoff_seconds: float = 15.0
    max_wait_seconds: float = 660.0  # in all, where the server says for how long it wants no requests
    max_retries: int = 10  # of one request
    max_attempts: int = 4  # when wrong bytes come: reading again seldom helps more often

    def client(self, *, writing: bool, allow_http: bool) -> "ClientConfig":
        """The timeouts of one HTTP client."""
        return {
            "connect_timeout": timedelta(seconds=self.connect_seconds),
            "read_timeout": timedelta(seconds=self.upload_seconds if writing else self.stall_seconds),
            # of a whole request and answer; a large body is ended earlier when next to nothing comes
            "timeout": timedelta(seconds=self.upload_seconds) if writing else timedelta(hours=12),
            "allow_http": allow_http,
            "user_agent": "saecache",
        }

    def obstore_retries(self, *, parts: bool) -> "RetryConfig":
        """Retries by the object store library: none, but for the parts of a large upload."""
        return {
            "max_retries": self.max_retries if parts else 0,
            "retry_timeout": timedelta(seconds=max(self.retry_seconds, 3 * self.upload_seconds)),
            "backoff": {
                "init_backoff": timedelta(seconds=self.first_backoff_seconds),
                "max_backoff": timedelta(seconds=self.max_backoff_seconds),
                "base": 2,
            },
        }


LEAST_BODY_BYTES = 16 << 10


def repeat(work: Callable[[], T], patience: Patience, has_answered: Callable[[], bool]) -> T:
    """Do ``work`` until it succeeds, while its failures are of the kind that passes.

    Args:
        has_answered: whether the store has ever answered. Until it has, patience is shorter.

    Raises:
        RemoteError: the last failure. An outer ``repeat`` does not begin all over again.
        WrongBytesError: wrong bytes came ``max_attempts`` times.
    """
    attempt = wrong_bytes = 0
    waited = 0.0  # because the server wanted it
    first_failure: float | None = None
    while True:
        attempt += 1
        try:
            return work()
        except (RemoteError, WrongBytesError) as error:
            wrong_bytes += isinstance(error, WrongBytesError)
            first_failure = first_failure or time.monotonic()
            seconds = patience.retry_seconds if has_answered() else patience.first_retry_seconds
            wait = getattr(error, "wait_seconds", 0.0)
            waited += wait
            if (
                not error.may_pass
                or attempt > patience.max_retries
                or wrong_bytes >= patience.max_attempts
                or waited > patience.max_wait_seconds
                or time.monotonic() - first_failure > seconds
            ):
                error.may_pass = False
                raise
            if wait > 0:
                logger.warning("the server wants no requests for %g seconds: waiting", wait)
                time.sleep(wait * random.uniform(1, 1.1))
                first_failure = None  # it was not a failure to wait
                continue
            pause = min(patience.first_backoff_seconds * 2.0**attempt, patience.max_backoff_seconds)
            time.sleep(pause * random.uniform(0.5, 1))  # so that many readers do not come back together
