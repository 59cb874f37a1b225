"""What an object store's errors mean to a person, and whether asking again can help.

Messages are made here. Nothing of the foreign text is passed on, because it may quote credentials.
"""

import re
from dataclasses import dataclass

from ....common.errors import CorruptCacheError, SaecacheError, UsageError
from .redirects import is_refused_redirect
from .services import service_of


class RemoteError(SaecacheError):
    """The object store failed; the same command continues.

    ``may_pass``: whether asking again can help. ``wait_seconds``: how long the server wants us to wait first.
    """

    def __init__(self, message: str, *, may_pass: bool = True, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.wait_seconds = wait_seconds


class UnreadableAnswerError(RemoteError):
    """The answer is not what the protocol says."""


class RemoteChangedError(SaecacheError):
    """Somebody changed the location while it was being read or written."""


class WrongBytesError(CorruptCacheError):
    """Other bytes came than expected, damaged on the way or in the store."""

    may_pass = True


class MissingObjectError(SaecacheError):
    """There is no such object."""


class AccessError(UsageError):
    """Wrong or expired credentials, missing rights, a missing bucket: trying again changes nothing."""


@dataclass(frozen=True)
class Failure:
    """An error of the object store, taken apart. ``status`` is None when there was no (whole) answer."""

    status: int | None
    code: str
    text: str


# The server got other bytes than were sent: send them again.
_DAMAGED_ON_THE_WAY = {
    "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "RequestTimeout",
    "InvalidPart", "NoSuchUpload",
}  # fmt: skip
_MAY_PASS = {408, 409, 412, 416, 429}  # and everything from 500 on that is not in the next line
_NOT_SUPPORTED = {405, 501}
_NO_ANSWERS = {304}  # to what we ask; nor is what HTTP has no meaning for
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "ExpiredTokenException"}
_WRONG_KEY = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "AuthorizationHeaderMalformed",
}  # fmt: skip
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_NO_CREDENTIALS = re.compile(
    r"169\.254\.169\.254|metadata\.google\.internal|latest/api/token|MissingCredentials"
)


_CODE = re.compile(r"<Code>([A-Za-z0-9.]+)</Code>|\"(?:code|reason)\": *\"([A-Za-z0-9.]+)\"")
_CODE_OF_ONE = re.compile(r"\(code: ([A-Za-z0-9.]+)\)\s*$")  # of one of many objects that were to be removed


def parse_failure(error: BaseException) -> Failure:
    """Status and code of an error that came from the object store library."""
    text = str(error).split("Debug source:")[0]
    status = re.search(r"status code: (\d{3})", text)
    code = _CODE.search(text) or _CODE_OF_ONE.search(text)
    found = int(status[1]) if status else None
    if isinstance(error, FileNotFoundError):
        found = found or 404
    if isinstance(error, PermissionError) or type(error).__name__ == "PermissionDeniedError":
        found = found or 403
    return Failure(found, next(filter(None, code.groups()), "") if code else "", text)


def is_missing_bucket(error: BaseException) -> bool:
    """Whether the bucket is what the store did not find."""
    return parse_failure(error).code in _NO_BUCKET


def is_not_supported(error: BaseException) -> bool:
    """Whether the server does not know requests of this kind."""
    return parse_failure(error).status in _NOT_SUPPORTED


def translate(error: BaseException, what: str, where: str, server: str) -> SaecacheError:
    """The error to raise for ``error`` while doing ``what`` (``reading x``) at the location ``where``.

    ``server`` is the address that was asked, as it may be shown.
    """
    if is_refused_redirect(error):
        return AccessError(
            f"{what} at {where}: {server} redirects to another host, which is not followed because that host "
            "would get the session token; check the endpoint, or use keys without a token"
        )
    failure = parse_failure(error)
    known = f"{failure.status or ''} {failure.code}".strip()
    name = f" ({known})" if known else ""
    refusal = _refusal(failure, name, what, where)
    if refusal is not None:
        return AccessError(refusal)
    if failure.status == 404:
        return MissingObjectError(f"{what} at {where}: there is no such object")
    if failure.status is None and failure.code:  # within an answer whose own status is 200
        return RemoteError(f"{what} at {where}: the server kept failing{name}; run again later, it continues")
    if failure.status is None or failure.status in _NO_ANSWERS or not 200 <= failure.status < 600:
        kind, words = RemoteError, f"no answer from {server} (check the endpoint and the network)"
        if "response body" in failure.text:
            words = "the connection broke or stalled in the middle of an answer"
        elif "error sending request" not in failure.text and "Connect" not in failure.text:
            kind, words = UnreadableAnswerError, f"the answer of {server} makes no sense"
        return kind(f"{what} at {where}: {words}; run again, it continues")
    if failure.status in _NOT_SUPPORTED:
        words = f"the server does not support this request{name}"
        return RemoteError(f"{what} at {where}: {words}", may_pass=False)
    if failure.status >= 500 or failure.status == 429:
        return RemoteError(f"{what} at {where}: the server kept failing{name}; run again later, it continues")
    may_pass = failure.status in _MAY_PASS or failure.code in _DAMAGED_ON_THE_WAY
    return RemoteError(f"{what} at {where}: the server refused the request{name}", may_pass=may_pass)


def _refusal(failure: Failure, name: str, what: str, where: str) -> str | None:
    """The words for what the user has to change, or None."""
    service = service_of(where)
    code, status, text = failure.code, failure.status, failure.text
    if "External AWS credential provider" in text:  # that of a profile; what follows may quote secrets
        return f"{where}: the AWS profile gives no credentials any more; renew them ('aws sso login')"
    if code in _NO_BUCKET:
        return f"{where}: there is no such bucket{name}; check the name, and {service.endpoint}"
    if code in _EXPIRED:
        return f"{what} at {where}: the credentials have expired{name}; renew them and run again"
    if _NO_CREDENTIALS.search(text):
        return f"{where}: no credentials were found; {service.login}"
    if code == "RequestTimeTooSkewed":
        return f"{where}: the server's clock and this machine's differ too much{name}; set the clock"
    if code in _WRONG_KEY or status == 401:
        return f"{what} at {where}: the credentials were not accepted{name}; check {service.credentials}"
    if status == 407:
        return f"{what} at {where}: the proxy between here and there wants a login{name}; see HTTPS_PROXY"
    if status == 403 or code == "AccessDenied":
        return f"{what} at {where}: not allowed{name}; the credentials work, but lack the right for this"
    if "Received redirect" in text:  # one without a place to go to
        return f"{where}: the bucket is in another region{name}; set AWS_REGION to its own"
    if status in (301, 302, 303, 307, 308):  # the library follows none for what is written
        return f"{what} at {where}: the server redirects to another place{name}; check {service.endpoint}"
    if "builder error" in text:
        return f"{where}: the endpoint is not a valid https:// URL; check {service.endpoint}"
    return None
