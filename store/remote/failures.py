"""What an object store's errors mean to a person. Messages are made here, not passed on: no secret leaves."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ...common.errors import CorruptCacheError, SaecacheError, UsageError


class RemoteError(SaecacheError):
    """The object store failed although the request was repeated; the same command continues.

    ``repeated`` says whether obstore did repeat the request: what breaks in the middle of a body it may not.
    ``answered`` says whether the server refused it, rather than the network.
    """

    def __init__(self, message: str, *, repeated: bool = False, answered: bool = False) -> None:
        super().__init__(message)
        self.repeated = repeated
        self.answered = answered


class RemoteChangedError(SaecacheError):
    """Somebody changed the location while it was being read or written."""


class WrongBytesError(CorruptCacheError):
    """Other bytes came than were expected, on the way or in the store: asked again before it is believed."""


class MissingObjectError(SaecacheError):
    """There is no such object."""


class AccessError(UsageError):
    """Wrong or expired credentials, missing rights, a missing bucket: trying again changes nothing."""


@dataclass(frozen=True)
class Failure:
    """An error of the object store, taken apart."""

    status: int | None
    code: str
    text: str


# The server got other bytes than were sent: send them again.
_DAMAGED_ON_THE_WAY = {
    "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "RequestTimeout",
    "InvalidPart", "NoSuchUpload",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "ExpiredTokenException"}
_WRONG_KEY = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_NO_CREDENTIALS = re.compile(
    r"169\.254\.169\.254|metadata\.google\.internal|latest/api/token|MissingCredentials"
)


class _Variables(NamedTuple):
    """Which variables of the environment decide, of one kind of store."""

    endpoint: str
    credentials: str


_VARIABLES = {
    "s3": _Variables(
        "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and the region"
    ),
    "gs": _Variables("GOOGLE_BASE_URL", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": _Variables(
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    ),
}


def take_apart(error: BaseException) -> Failure:
    """Status and code of an error that came from obstore."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", str(error).split("Debug source:")[0])
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>([A-Za-z0-9.]+)</Code>|\"(?:code|reason)\": *\"([A-Za-z0-9.]+)\"", text)
    found = int(status[1]) if status else None
    if isinstance(error, FileNotFoundError):
        found = found or 404
    return Failure(found, (code[1] or code[2]) if code else "", text)


def translate(error: BaseException, what: str, where: str) -> SaecacheError:
    """The error to raise for ``error`` while doing ``what`` (``reading x``) at the location ``where``."""
    failure = take_apart(error)
    name = f" ({failure.status} {failure.code})".replace(" )", ")") if failure.status else ""
    variables = _VARIABLES.get(where.partition("://")[0], _VARIABLES["s3"])
    if failure.code in _NO_BUCKET:
        return AccessError(
            f"{where}: there is no such bucket{name}; check the name, and {variables.endpoint}"
        )
    if failure.code in _EXPIRED:
        return AccessError(f"{what} at {where}: the credentials have expired{name}; renew them and run again")
    if _NO_CREDENTIALS.search(failure.text):
        return AccessError(
            f"{where}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE (for public buckets AWS_SKIP_SIGNATURE=true; for gs:// "
            "GOOGLE_APPLICATION_CREDENTIALS, for az:// AZURE_STORAGE_ACCOUNT_NAME and a key)"
        )
    if failure.code == "RequestTimeTooSkewed":
        return AccessError(
            f"{where}: the server's clock and this machine's differ too much{name}; set the clock"
        )
    if failure.code in _WRONG_KEY or failure.status == 401:
        return AccessError(
            f"{what} at {where}: the credentials were not accepted{name}; check {variables.credentials}"
        )
    if failure.status == 403:
        return AccessError(
            f"{what} at {where}: not allowed{name}; the credentials work, but lack the right for this"
        )
    if failure.status == 404:
        return MissingObjectError(f"{what} at {where}: there is no such object")
    if "Received redirect" in failure.text:  # obstore does not follow them
        return AccessError(f"{where}: the bucket is in another region{name}; set AWS_REGION to its own")
    if "builder error" in failure.text:
        return AccessError(f"{where}: the endpoint is not a valid https:// URL; check {variables.endpoint}")
    if failure.status is None:
        words = _network_words(failure.text)
        return RemoteError(
            f"{what} at {where}: {words}; run again, it continues", repeated="no answer" in words
        )
    if failure.status >= 500 or failure.status == 429:
        return RemoteError(
            f"{what} at {where}: the server kept failing{name}; run again later, it continues",
            repeated=True,
            answered=True,
        )
    repeated = failure.code not in _DAMAGED_ON_THE_WAY and failure.status not in (408, 412, 416)
    return RemoteError(
        f"{what} at {where}: the server refused the request{name}", repeated=repeated, answered=True
    )


def _network_words(text: str) -> str:
    """Network errors have no status; their words hold addresses but no secrets once queries are gone."""
    if "error sending request" in text or "Connect" in text:
        address = re.search(r"https?://[^/\s?]+", text)
        return (
            f"no answer from {address[0] if address else 'the server'} (check the endpoint and the network)"
        )
    if "error decoding response body" in text or "request or response body" in text:
        return "the connection broke or stalled in the middle of an object"
    line = re.sub(r"\?\S*", "", text.strip().splitlines()[0] if text.strip() else "unknown error")
    return line[:200]
