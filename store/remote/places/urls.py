"""Which texts name an object store, and their parts."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ....common.errors import UsageError
from .hub.address import parse_hub_path

SCHEMES = ("s3", "gs", "az", "hf", "file", "memory")
_URL = re.compile(rf"^([A-Za-z][A-Za-z0-9+.-]+)://|^({'|'.join(SCHEMES)}):/", re.IGNORECASE)


@dataclass(frozen=True)
class ObjectUrl:
    """``scheme://bucket/prefix``; for ``file`` the bucket is empty and the prefix an absolute path.

    For ``hf`` the bucket is a repository, ``datasets/ORG/NAME@REVISION``.
    """

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file:///{quote(self.prefix)}"
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(text: str | Path) -> bool:
    """Whether ``text`` is a URL rather than a path of this machine; ``s3:/x`` is one that is mistyped."""
    return isinstance(text, str) and _URL.match(text) is not None


def parse_url(text: str) -> ObjectUrl:
    """Take a URL apart.

    Raises:
        UsageError: not a URL, unknown scheme, no bucket, credentials or a query in it, a path that climbs.
    """
    match = _URL.match(text)
    if match is None:
        shown = "something else" if "@" in text else f"the path {text!r}"
        raise UsageError(f"expected a URL such as s3://bucket/team/name, got {shown}")
    scheme = (match[1] or match[2]).lower()
    if match[2]:
        raise UsageError(f"two slashes are missing: expected {scheme}://bucket/team/name")
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        hint = " (for S3-compatible servers use s3:// and set AWS_ENDPOINT_URL)" if "http" in scheme else ""
        raise UsageError(f"{scheme}:// is not known here; expected one of {known}{hint}")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UsageError(f"this {scheme}:// URL cannot be read: brackets are not part of a bucket") from None
    # urlsplit drops some control characters; lone surrogates cannot be sent.
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise UsageError(f"control characters and lone surrogates cannot be part of a {scheme}:// URL")
    if "@" in parts.netloc or parts.query or parts.fragment or _hides_credentials(text):
        raise UsageError(  # without the text: it may hold a secret
            f"a {scheme}:// URL is a bucket and a path: credentials and options come from the environment, "
            "take what follows '?' or '#', and what precedes '@', out of it"
        )
    bucket = "" if scheme == "file" else parts.netloc
    if scheme == "file" and parts.netloc not in ("", "localhost"):
        place = Path(parts.netloc + parts.path).absolute()
        raise UsageError(f"a file URL has three slashes and a whole path: {place.as_uri()}")
    if scheme != "file" and not bucket:
        raise UsageError(f"{text!r} names no bucket; expected {scheme}://bucket/team/name")
    if scheme in ("s3", "gs", "az") and not re.fullmatch(r"[A-Za-z0-9$][A-Za-z0-9._-]*", bucket):
        raise UsageError(f"{bucket!r} cannot be the name of a bucket; expected {scheme}://bucket/team/name")
    path = unquote(parts.path) if scheme == "file" else parts.path  # as the providers' own tools read them
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments) or any(ord(c) < 32 for c in path):
        raise UsageError(f"{text!r}: '.', '..' and control characters cannot be part of a location's path")
    if scheme == "file" and not segments:
        raise UsageError(f"{text!r} names no folder; expected file:///folder/name")
    if scheme == "hf":
        repository, prefix = parse_hub_path("/".join([bucket, *segments]))
        return ObjectUrl(scheme, str(repository), prefix)
    return ObjectUrl(scheme, bucket, "/".join(segments))


def _hides_credentials(text: str) -> bool:
    """Whether something like ``user:password@`` stands in a URL whose password holds ``/``."""
    before_at, at, _ = text.partition("://")[2].rpartition("@")
    return bool(at) and ":" in before_at


def is_endpoint(url: str) -> bool:
    """Whether ``url`` is an address that can be asked: http:// or https://, a host, perhaps a port."""
    try:
        parts = urlsplit(url)
        if any(c.isspace() for c in url):
            return False
        return parts.scheme in ("http", "https") and bool(redact_url(url)) and (parts.port or 1) > 0
    except ValueError:
        return False


def redact_url(url: str) -> str:
    """``scheme://host:port`` of a URL and nothing else; "" where no host can be told from a password."""
    scheme, separator, rest = url.partition("://")
    host = re.split(r"[/?#\\\s]", rest.rpartition("@")[2])[0]
    sound = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
    return f"{scheme}://{host}" if separator and sound and scheme.isalnum() else ""
