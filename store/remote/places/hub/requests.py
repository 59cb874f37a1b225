"""Single requests to the Hub's HTTP API: bounded in time, errors translated, the token for the Hub only."""

import http.client
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from functools import partial
from time import monotonic
from typing import Any
from urllib.parse import urljoin, urlsplit

from .....common.errors import SaecacheError
from ....untrusted_json import parse_json
from ..bucket import Bucket
from ..failures import AccessError, MissingObjectError, RemoteError, UnreadableAnswerError
from ..retries import LEAST_BODY_BYTES
from ..services import SERVICES

_MAX_ANSWER_BYTES = 32 << 20  # a listing of a thousand files takes some 300 kB
_LOGIN = SERVICES["hf"].login


class MissingRepositoryError(AccessError):
    """There is no such repository, or none that this user may see: the Hub does not tell which."""


class BranchMovedError(RemoteError):
    """Somebody else committed meanwhile: look again, and try again."""


@dataclass(frozen=True)
class Answer:
    """Headers and body of a successful answer."""

    headers: Mapping[str, str]
    body: bytes

    def parse(self, what: str) -> Any:
        """
        Raises:
            RemoteError: it is no JSON, or of such a kind that it would fill the memory.
        """
        try:
            return parse_json(self.body)
        except ValueError:
            kind = self.headers.get("Content-Type", "").partition(";")[0] or "no kind"
            page = kind if re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", kind) else "another kind"
            raise UnreadableAnswerError(
                f"{what}: the server answers with a page of {page} instead of JSON; check HF_ENDPOINT, and "
                "what is between here and there"
            ) from None


class HubRequests:
    """Sends requests for one repository. Each is made once: for use inside ``repeat``.

    Args:
        bucket: is told that the server has answered; its patience bounds requests.
        where: the URL of the place, for messages.
        endpoint: scheme and host of the Hub, perhaps with a path.
        token: of the user, or None.
    """

    def __init__(self, bucket: Bucket, where: str, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint
        self._bucket, self._where = bucket, where
        self._authorize: Callable[[urllib.request.Request], None] = lambda _request: None
        if token is not None:  # in a closure, so that nothing shows it
            value = f"Bearer {token}"
            self._authorize = lambda request: request.add_unredirected_header("Authorization", value)
        self._opener = urllib.request.build_opener(_KeepMethod, _InTime(bucket.patience.upload_seconds))
        self.has_token = token is not None

    def __repr__(self) -> str:
        return f"HubRequests({self._where!r})"

    def ask(
        self,
        method: str,
        address: str,
        what: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; the token goes with it only if the address is the Hub's own.

        Args:
            address: a URL, or a path at the endpoint.
            what: for messages, as ``reading x``.
            body, length: blocks of a large body need their sum.

        Raises:
            AccessError, MissingRepositoryError: token, rights, repository or revision are wrong.
            MissingObjectError: no such file.
            BranchMovedError: the branch is not where the request says.
            RemoteError: no (whole) answer, or one that says that the server failed.
        """
        url = f"{self.endpoint}{address}" if address.startswith("/") else address
        if urlsplit(url).scheme not in ("http", "https"):
            raise UnreadableAnswerError(f"{what} at {self._where}: the server names a place that is no URL")
        request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - checked above
        request.add_header("User-Agent", "saecache")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if length is not None:
            request.add_header("Content-Length", str(length))
        if origin(url) == origin(self.endpoint):
            self._authorize(request)
        try:
            return self._open(request, large=length is not None)
        except SaecacheError:
            raise
        except urllib.error.HTTPError as error:
            self._bucket.has_answered = True
            with error:
                raise self._explain(error, what) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            words = f"no answer from {self._bucket.server} (check HF_ENDPOINT and the network)"
            if isinstance(reason, TimeoutError):
                words = "the connection stalled"
            elif isinstance(reason, http.client.HTTPException | ConnectionResetError | BrokenPipeError):
                words = "the connection broke, or the answer makes no sense"
            raise RemoteError(f"{what} at {self._where}: {words}; run again, it continues") from None

    def _open(self, request: urllib.request.Request, *, large: bool) -> Answer:
        patience = self._bucket.patience
        wait = patience.upload_seconds if large else patience.stall_seconds
        body = bytearray()
        with self._opener.open(request, timeout=wait) as answer:
            self._bucket.has_answered, since = True, monotonic()
            while block := answer.read1(1 << 20):
                body += block
                if len(body) > _MAX_ANSWER_BYTES:
                    raise UnreadableAnswerError(f"{self._where}: an answer of more than 32 MiB")
                if (past := monotonic() - since) > patience.upload_seconds or (
                    past > patience.stall_seconds and len(body) < LEAST_BODY_BYTES
                ):
                    raise TimeoutError
            expected = answer.headers.get("Content-Length")
            if expected is not None and request.get_method() != "HEAD" and len(body) != int(expected):
                raise http.client.IncompleteRead(bytes(body))
            return Answer(answer.headers, bytes(body))

    def _explain(self, error: urllib.error.HTTPError, what: str) -> SaecacheError:
        """What an error of the Hub means. Its own words are not passed on: they may quote anything."""
        status, code = error.code, error.headers.get("X-Error-Code", "")
        name = f" ({status} {code})" if re.fullmatch("[A-Za-z]{1,40}", code) else f" ({status})"
        if code == "GatedRepo":
            return AccessError(f"{self._where}: access must be asked for on the Hub{name}; then {_LOGIN}")
        if status == 401 and error.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
            return AccessError(f"{what} at {self._where}: the token was not accepted{name}; {_LOGIN}")
        if code == "RevisionNotFound":
            return AccessError(
                f"{self._where}: the repository has no such revision{name}; check the name after '@', or "
                "make the branch first"
            )
        if code == "EntryNotFound":
            return MissingObjectError(f"{what} at {self._where}: there is no such object")
        if code == "RepoNotFound" or status == 401:
            login = "" if self.has_token else f"; {_LOGIN}"
            return MissingRepositoryError(
                f"{self._where}: there is no such repository, or it is private and not yours{name}{login}"
            )
        if status == 403:
            return AccessError(
                f"{what} at {self._where}: not allowed{name}; the token lacks the right for this, or the "
                "Hub's quota is used up"
            )
        if status == 404:
            return AccessError(
                f"{what} at {self._where}: the server does not know this{name}; check HF_ENDPOINT"
            )
        if status in (409, 412):
            return BranchMovedError(f"{what} at {self._where}: the branch keeps changing{name}; run again")
        if status == 429:
            wait = _wanted_wait(error.headers)
            when = f"in {wait:g} seconds" if wait else "later"
            return RemoteError(
                f"{what} at {self._where}: the Hub wants fewer requests{name}; run again {when}, "
                "it continues",
                wait_seconds=wait,
            )
        if status >= 500:
            return RemoteError(
                f"{what} at {self._where}: the server kept failing{name}; run again later, it continues"
            )
        if 300 <= status < 400:
            return AccessError(
                f"{what} at {self._where}: the server redirects to another place{name}; was it renamed?"
            )
        return RemoteError(
            f"{what} at {self._where}: the server refused the request{name}", may_pass=status == 408
        )


class _HeadInTime(http.client.HTTPConnection):
    """A connection that ends where the head of an answer takes ``head_seconds``, however its bytes come.

    A timeout of the socket is one of each byte, and a server may send "100 Continue" without end.
    """

    def __init__(self, *args: Any, head_seconds: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._head_seconds = head_seconds

    def getresponse(self) -> http.client.HTTPResponse:
        late, sock = threading.Event(), self.sock

        def end() -> None:
            late.set()
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._head_seconds, end)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()
        finally:
            timer.cancel()
        if late.is_set():  # what came of the head passes for a whole one
            answer.close()
            raise TimeoutError
        return answer


class _SecureHeadInTime(_HeadInTime, http.client.HTTPSConnection):
    pass


class _InTime(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections whose answers begin in time."""

    def __init__(self, head_seconds: float) -> None:
        super().__init__()
        self._head_seconds = head_seconds

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HeadInTime, head_seconds=self._head_seconds), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_SecureHeadInTime, head_seconds=self._head_seconds), req)


class _KeepMethod(urllib.request.HTTPRedirectHandler):
    """Follows redirects of GET; the token goes along within the same host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.get_method() not in ("GET", "HEAD"):
            return None
        new = super().redirect_request(req, fp, code, msg, headers, urljoin(req.full_url, newurl))
        authorization = req.unredirected_hdrs.get("Authorization")
        if new is not None and authorization and origin(new.full_url) == origin(req.full_url):
            new.add_unredirected_header("Authorization", authorization)
        return new


def _wanted_wait(headers: Message) -> float:
    """Seconds to wait, by ``Retry-After`` or ``t`` in the Hub's ``RateLimit``; 0 where neither says it."""
    found = re.fullmatch(r"\d{1,5}", headers.get("Retry-After", "").strip())
    limit = re.search(r"\bt=(\d{1,5})\b", headers.get("RateLimit", ""))
    return float(found[0] if found else limit[1] if limit else 0)


def origin(url: str) -> tuple[str, str | None, int | None]:
    """(scheme, host, port) of a URL, which decide whether two are the same server."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, parts.hostname, port
    except ValueError:
        return "", None, None
