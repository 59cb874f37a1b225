"""Redirects to another host, which must not carry a session token.

The object store library follows redirects. When the host changes it drops ``Authorization``, but it sends the
session token (``x-amz-security-token``) and customer keys along, and it has no setting against that. It has
one for proxies: here every host but the endpoint's goes through a proxy at a port that nobody can listen on,
so that connecting fails before anything is sent.
"""

import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import ClientConfig

_NOBODY = "127.0.0.1:0"
_SECRET_HEADERS = {  # variables of the library whose values travel in headers of their own
    "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_S3_EXPRESS", "AWS_SSE_CUSTOMER_KEY_BASE64",
}  # fmt: skip
_IDENTITY_URLS = (
    "AWS_ENDPOINT_URL_STS", "AWS_METADATA_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip
_LINK_LOCAL = ("169.254.0.0/16", "fd00:ec2::/32")  # where cloud machines get their credentials from

logger = logging.getLogger(__name__)


def sends_tokens(provider: "Boto3CredentialProvider | None") -> bool:
    """Whether requests to S3 may carry secrets in other headers than ``Authorization``.

    Keys alone do not; web identity, the roles of machines and containers, and most profiles do.
    """
    settings = {name.upper(): value for name, value in os.environ.items() if name.startswith("AWS_")}
    if not _SECRET_HEADERS.isdisjoint(settings):
        return True
    if provider is not None:
        return bool(provider().get("token"))
    unsigned = settings.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
    return not unsigned and "AWS_ACCESS_KEY_ID" not in settings


def refuse_redirects(endpoint: str, region: str) -> "ClientConfig":
    """Settings of the library with which it talks to no other host than that of ``endpoint``.

    Hosts that hand out credentials may be asked too. Without a custom endpoint the server is AWS itself,
    which issued the token. Behind the user's own proxy the library cannot tell hosts apart: it warns.
    """
    if not endpoint:
        return {}
    if _has_proxy(endpoint):
        logger.warning(
            "requests to %s carry a session token and go through a proxy: if that server redirects to "
            "another host, the token goes there too; use keys without a token, or a proxy for this host only",
            urlsplit(endpoint).hostname,
        )
        return {}
    urls = [endpoint, *(os.environ.get(name, "") for name in _IDENTITY_URLS)]
    hosts = [urlsplit(url).hostname for url in urls]
    allowed = [*filter(None, hosts), f"sts.{region}.amazonaws.com", *_LINK_LOCAL]
    return {"proxy_url": f"http://{_NOBODY}", "proxy_excludes": ",".join(allowed)}


def is_refused_redirect(error: BaseException) -> bool:
    """Whether :func:`refuse_redirects` is the cause of an error of the library."""
    return f" {_NOBODY}," in str(error)


def _has_proxy(endpoint: str) -> bool:
    if any(name.upper() == "AWS_PROXY_URL" for name in os.environ):
        return True
    proxies, parts = getproxies(), urlsplit(endpoint)
    named = proxies.get(parts.scheme) or proxies.get("all")
    return bool(named) and not proxy_bypass(parts.netloc.rpartition("@")[2])
