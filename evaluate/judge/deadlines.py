"""Requests that end in time, however the server's bytes come.

A timeout of the client is one of each read, and so of each byte: a head that drips, or "100 Continue"
without end, would be waited for without limit.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any

import httpcore2 as httpcore
import httpx2 as httpx

_deadline: ContextVar[float] = ContextVar("deadline", default=inf)


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """End what a client of :func:`keep_deadlines` reads in this block, in this thread, after ``seconds``.

    What comes later raises ``httpx.ReadTimeout``.
    """
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def keep_deadlines(client: httpx.Client) -> httpx.Client:
    """``client``, whose connections keep to :func:`in_time`; it has sent nothing yet."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):  # the library takes its backend from nobody
            transport._pool._network_backend = _Backend(transport._pool._network_backend)
    return client


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(self, *args: Any, **settings: Any) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(*args, **settings))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = _deadline.get() - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        least = min(left, inf if timeout is None else timeout)
        return self._inner.read(max_bytes, None if least == inf else least)

    def write(self, buffer: Iterable[Any], timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)  # type: ignore[arg-type]

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
