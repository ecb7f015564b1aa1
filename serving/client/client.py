"""`Client` and `AsyncClient`: everything that a running service offers, as methods."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar
from urllib.parse import urlsplit

from serving.client.calls import Calls
from serving.client.operations import Operations
from serving.client.transport import Blocking, Suspending

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


Connections = TypeVar("Connections", Blocking, Suspending)


class _Connected(Operations, Generic[Connections]):
    """What both clients are made of."""

    _kind: ClassVar[type[Any]]
    _transport: Connections

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        **http: Any,
    ) -> None:
        """By default `url` is FORKSERVE_URL, or else port 8000 of this machine, and `api_key` is FORKSERVE_API_KEY.

        `timeout` in seconds is for a call with its `retries`, which are made only where a request may be sent twice.
        `http` are further options of the client of httpx, such as `verify`, `proxy` or `headers`.
        """
        options = _http_options(url, api_key, http)
        self.url: str = options["base_url"]
        self._transport = self._kind(**options)
        self._calls = Calls(self._transport, timeout=timeout, retries=retries)


class Client(_Connected[Blocking]):
    """A client that blocks its thread. Several threads may share it; a process that is forked needs its own."""

    blocks = True
    _kind = Blocking

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.http.close()


class AsyncClient(_Connected[Suspending]):
    """The client for event loops: its methods are those of `Client`, as coroutines and asynchronous iterators."""

    blocks = False
    _kind = Suspending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.http.aclose()


def _http_options(url: str | None, api_key: str | None, http: dict[str, Any]) -> dict[str, Any]:
    """The options of an httpx client. Raises ValueError for an invalid URL."""
    address = (url or os.environ.get("FORKSERVE_URL") or DEFAULT_URL).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of the service must be http://... or https://...")
    key = os.environ.get("FORKSERVE_API_KEY", "") if api_key is None else api_key
    headers = dict(http.pop("headers", {})) | ({"authorization": f"Bearer {key}"} if key else {})
    # the proxy of HTTP_PROXY is not meant for a service on this machine
    return {"base_url": address, "headers": headers, "trust_env": parts.hostname not in LOOPBACK, **http}
