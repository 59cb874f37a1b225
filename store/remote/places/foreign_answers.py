"""Whether a server answers listings with listings: the library takes any page for an empty one."""

import http.client
import re
import urllib.error
import urllib.request
from time import monotonic
from urllib.parse import urlencode

from .bucket import Bucket

_MARK = b"ListBucketResult"  # the first element of every listing, of S3 and of Google
_LOOKED_AT_BYTES = 4096
_ATTEMPTS = 3


def foreign_listing(bucket: Bucket, path: str) -> str | None:
    """What is answered to a listing of ``path``, in words, where that is something else than a listing.

    The library does not show answers, so this asks by itself and without a signature. A server refuses that,
    or answers with a listing; but a proxy that answers with a page of its own does so here too. None as well
    where there is no answer, or one that says nothing.
    """
    if bucket.address is None:
        return None
    query = urlencode({"list-type": 2, "prefix": f"{path}/" if path else "", "delimiter": "/"})
    for _ in range(_ATTEMPTS):
        try:
            kind, start = _ask(bucket, f"{bucket.address}?{query}")
        except urllib.error.HTTPError:  # it is refused
            return None
        except (OSError, http.client.HTTPException, ValueError):
            continue
        if _MARK in start:
            return None
        page = f"a page of {kind}" if re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", kind) else "a page of another kind"
        return page if start else "nothing"
    return None


def _ask(bucket: Bucket, url: str) -> tuple[str, bytes]:
    """The type of the answer, and its first bytes."""
    request = urllib.request.Request(url, headers={"User-Agent": "saecache"})  # noqa: S310 - is_endpoint
    until, start = monotonic() + bucket.patience.upload_seconds, b""
    with _OPENER.open(request, timeout=bucket.patience.stall_seconds) as answer:
        kind = answer.headers.get_content_type()
        while _MARK not in start and len(start) < _LOOKED_AT_BYTES and monotonic() < until:
            block = answer.read1(_LOOKED_AT_BYTES)
            if not block:
                break
            start += block
    return kind, start


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Another host's answer says nothing about this one."""


_OPENER = urllib.request.build_opener(_NoRedirects)
