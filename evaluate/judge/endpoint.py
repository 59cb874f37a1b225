"""One OpenAI-compatible server: requests with a key, timeouts, retries and pauses.

The key comes from an environment variable. It is sent to the server's own address only, since redirects are
refused, and it is blotted out of every message.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from ...common.errors import UsageError
from ...common.validation import suggest
from ...store.untrusted_files import parse_object
from .address import check_url, is_local, read_key
from .config import EndpointConfig
from .deadlines import in_time, keep_deadlines
from .failures import CONTINUES, EndpointError, RefusedRequestError, Stopped
from .pacing import Pace

MAX_BODY_BYTES = 64 << 20
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_NO_KEY = {401, 403, 407}
_FOREVER_SECONDS = 1e9
_MAX_SHOWN = 300  # characters of a server's own words


class _PassingError(Exception):
    """A failure that may pass; ``pause`` seconds if the server said when to come back."""

    def __init__(self, reason: str, pause: float | None = None, *, is_answer: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        self.is_answer = is_answer  # status 200, but the body is not what was asked for


class Endpoint:
    """A server at ``url``. Its methods may be called from many threads.

    Args:
        stop: once it is set, no attempt begins and no pause goes on.

    Raises:
        UsageError: ``url`` is no base of an HTTP server, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        settings: EndpointConfig,
        stop: threading.Event | None = None,
    ) -> None:
        self.url = check_url(url)
        self._key_variable = key_variable
        self._key = read_key(key_variable)
        self._settings = settings
        self._stop = stop or threading.Event()
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute, wait=self._sleep)
        headers = {"User-Agent": "saecache", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        seconds = settings.timeout_seconds
        self._client = keep_deadlines(
            httpx.Client(
                headers=headers,
                follow_redirects=False,
                trust_env=not is_local(self.url),  # a proxy has no business with a server on this machine
                timeout=httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds)),
                limits=httpx.Limits(max_connections=settings.concurrency),
            )
        )

    def close(self) -> None:
        self._client.close()

    @property
    def sends_key_in_the_clear(self) -> bool:
        """Whether the key travels unencrypted to another machine."""
        return bool(self._key) and self.url.startswith("http://") and not is_local(self.url)

    def check(self, model: str, *, look_for_model: bool) -> None:
        """Make sure that the server is there, takes the key, and has ``model``, if it lists its models.

        Raises:
            UsageError: it cannot be reached, or it lacks the model.
            EndpointError: it refuses the key.
        """
        try:
            status, content = self._attempt("GET", "/models", None)
        except _PassingError as error:
            raise UsageError(
                f"no judge answers at {self.url}: {error}. Start the server, or correct --endpoint"
            ) from None
        if status in _NO_KEY:
            raise self._refusal(status, content)
        if status != 200 or not look_for_model:
            return  # the first call says more
        try:
            listed = parse_object(content).get("data")
        except ValueError:
            return
        items = listed if isinstance(listed, list) else []
        ids = [one.get("id") for one in items if isinstance(one, dict)]
        names = [name for name in ids if isinstance(name, str)]
        if names and model not in names:
            shown = ", ".join(name[:80] for name in names[:10]) + (", ..." if len(names) > 10 else "")
            raise UsageError(
                f"{self.url} has no model {model!r}{suggest(model, names)}; it lists {shown}. Correct "
                "--model, or set endpoint.check_model=false if the list is incomplete"
            )

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        num_tokens: int,
        extract: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> dict[str, Any]:
        """What ``extract`` takes from the JSON that the server answers, after as many attempts as it takes.

        Pauses grow, and their jitter is a function of the request, so that the same run pauses alike.

        Args:
            num_tokens: of prompt and answer, for the limit per minute.
            extract: raises :class:`RefusedRequestError` for JSON of another form.

        Raises:
            EndpointError: the server refuses us, or it fails longer than the settings allow.
            RefusedRequestError: it refuses this request, or gives no answer of the right form.
            Stopped: the work ends.
        """
        seed = hashlib.sha256(f"{path}\n{sorted(body.items())}".encode("utf-8", "replace")).digest()
        settings = self._settings
        attempt = wrong_answers = 0
        waited = 0.0  # for the server, not for our own pace
        while True:
            self._pace.admit(num_tokens)
            began = time.monotonic()
            try:
                status, content = self._attempt("POST", path, body)
                return self._extract(status, content, extract)
            except _PassingError as error:
                waited += time.monotonic() - began
                pause = max(error.pause or 0.0, _backoff(seed, attempt))
                wrong_answers += error.is_answer
                failures = attempt + 1 - wrong_answers
                impatient = waited + pause > settings.patience_seconds
                if error.is_answer and (impatient or wrong_answers > settings.max_repairs):
                    raise RefusedRequestError(str(error)) from None
                if impatient or failures > settings.max_retries:
                    asked = f", and it asks to wait {error.pause:.0f} s" if error.pause else ""
                    raise EndpointError(
                        f"the judge at {self.url} failed {attempt + 1} times in {waited:.0f} s: "
                        f"{error}{asked} (endpoint.max_retries={settings.max_retries}, "
                        f"endpoint.patience_seconds={settings.patience_seconds:g}). {CONTINUES}"
                    ) from None
                if error.pause:
                    self._pace.pause(error.pause)
                self._sleep(pause)
                waited += pause
                attempt += 1

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """Status and content of one attempt; a status that may pass raises with what the server said."""
        if self._stop.is_set():
            raise Stopped
        content = bytearray()
        try:
            with (
                in_time(self._settings.timeout_seconds),
                self._client.stream(method, self.url + path, json=body) as response,
            ):
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_BODY_BYTES:
                        raise _PassingError(f"an answer of more than {MAX_BODY_BYTES >> 20} MiB")
                status, headers = response.status_code, response.headers
        except httpx.TimeoutException:
            raise _PassingError(f"no whole answer in {self._settings.timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _PassingError(self._clean(str(error)) or type(error).__name__) from None
        if 300 <= status < 400:
            raise EndpointError(
                f"{self.url} redirects to {self._clean(_host_of(headers))} (status {status}). Redirects are "
                "not followed, so that the key stays where it belongs: give the final address as --endpoint"
            )
        if method == "POST" and status in _BUSY:
            raise _PassingError(self._words(status, content), _retry_after(headers))
        return status, bytes(content)

    def _extract(
        self, status: int, content: bytes, extract: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        if status in _NO_KEY or status in (404, 405):
            raise self._refusal(status, content)
        if not 200 <= status < 300:
            raise RefusedRequestError(self._words(status, content))
        try:
            return extract(parse_object(content))
        except ValueError as error:
            reason = f"its answer is no JSON object ({self._clean(str(error))})"
        except RefusedRequestError as error:
            reason = self._clean(str(error))
        raise _PassingError(reason, is_answer=True)

    def _refusal(self, status: int, content: bytes) -> EndpointError:
        """What to tell the user of a status that no other request would change."""
        words = self._words(status, content)
        if status not in _NO_KEY:
            return EndpointError(
                f"the judge at {self.url} does not know the address or the model: {words}. --endpoint is the "
                "base, which often ends in /v1"
            )
        if self._key:
            how = f"is the key in {self._key_variable} right?"
        else:
            how = f"set the environment variable {self._key_variable or 'of its key'} to its API key"
        return EndpointError(f"the judge at {self.url} refuses us: {words}; {how}")

    def _words(self, status: int, content: bytes | bytearray) -> str:
        """The status with the server's own words, without the key."""
        text = bytes(content[:4096]).decode("utf-8", "replace")
        try:
            error = parse_object(bytes(content)).get("error")
            text = str((error.get("message") if isinstance(error, dict) else error) or text)
        except ValueError:
            pass
        return f"status {status} ({self._clean(text)})" if text.strip() else f"status {status}"

    def _clean(self, text: str) -> str:
        """Printable text of one line, cut, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text[:_MAX_SHOWN]

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def _host_of(headers: Mapping[str, str]) -> str:
    """Where a redirect points to, without its path and query, which may hold secrets."""
    try:
        target = urlsplit(headers.get("location", ""))
        return f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
    except ValueError:
        return "no valid address"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, of a ``Retry-After`` in seconds or with a date; None without a good one."""
    written = headers.get("retry-after")
    if written is None:
        return None
    try:
        seconds = float(written)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(written).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), _FOREVER_SECONDS) if seconds == seconds else None


def _backoff(seed: bytes, attempt: int) -> float:
    """Seconds before the next attempt, between half of and all of a time that doubles."""
    longest = min(_FIRST_PAUSE_SECONDS * 2.0**attempt, _LONGEST_PAUSE_SECONDS)
    share = int.from_bytes(hashlib.sha256(seed + attempt.to_bytes(4, "big")).digest()[:4], "big") / 2**32
    return longest * (0.5 + 0.5 * share)
