"""Whether a server answers listings with listings: the library takes any page for an empty one."""

import http.client
import re
import urllib.request
from time import monotonic
from urllib.parse import urlencode

from .bucket import Bucket

_MARK = b"ListBucketResult"  # the first element of every listing, of S3 and of Google
_LOOKED_AT_BYTES = 4096


def foreign_listing(bucket: Bucket, path: str) -> str | None:
    """What is answered to a listing of ``path``, in words, where that is something else than a listing.

    The library does not show answers, so this asks by itself and without a signature: a server refuses that,
    or answers with a listing, but who answers with a page of his own does so here too. None as well where
    there is no answer, or one that says nothing.
    """
    if bucket.address is None:
        return None
    query = urlencode({"list-type": 2, "prefix": f"{path}/" if path else "", "delimiter": "/"})
    request = urllib.request.Request(f"{bucket.address}?{query}", headers={"User-Agent": "saecache"})  # noqa: S310 - the scheme was checked
    until, start = monotonic() + bucket.patience.upload_seconds, b""
    try:
        with _OPENER.open(request, timeout=bucket.patience.stall_seconds) as answer:
            kind = answer.headers.get_content_type()
            while _MARK not in start and len(start) < _LOOKED_AT_BYTES and monotonic() < until:
                block = answer.read1(_LOOKED_AT_BYTES)
                if not block:
                    break
                start += block
    except (OSError, http.client.HTTPException, ValueError):
        return None
    if _MARK in start:
        return None
    if not start:
        return "nothing"
    return f"a page of {kind}" if re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", kind) else "a page of another kind"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Another host's answer says nothing about this one."""


_OPENER = urllib.request.build_opener(_NoRedirects)
