"""The address of a server as users write it, and the key that belongs to it."""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from ...common.errors import UsageError


def check_url(url: str) -> str:
    """``url`` as the base of a server, without a slash at its end.

    Raises:
        UsageError: it is no http or https URL, or it holds a user, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"--endpoint {url[:200]!r} is no http or https URL; expected one as http://127.0.0.1:8000/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"the endpoint at {parts.hostname} is given with a user, a password, a query or a fragment: give "
            "the bare address, and the key in the environment variable that endpoint.key_variable names"
        )
    base = url.rstrip("/")
    return base.removesuffix("/chat/completions")


def is_local(url: str) -> bool:
    """Whether ``url`` is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(variable: str | None) -> str | None:
    """The key in the environment variable ``variable``; None if it is not set.

    Raises:
        UsageError: it cannot stand in a header. The message does not show it.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the environment variable {variable} holds no API key: expected one word of ASCII")
    return key or None
