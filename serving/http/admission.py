"""Looks at every request before the app does: who it is from, whether that is too many, and from whose page."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from serving.errors import TooManyRequests
from serving.http.clients import Clients, network_of
from serving.http.cors import Origins
from serving.http.rate_limit import Limiter, RateHeaders

Headers = list[tuple[bytes, bytes]]


class Admission:
    """Made before the fork, so that what it counts is shared."""

    def __init__(self, clients: Clients, limiter: Limiter | None, origins: Origins | None) -> None:
        self._clients = clients
        self._limiter = limiter
        self._rate_headers = RateHeaders(limiter.rate) if limiter is not None else None
        self._origins = origins

    async def admit(self, scope: MutableMapping[str, Any], headers: Headers) -> Headers | None:
        """Add to `headers` what the answer to this request has to say, whoever gives it.

        Returns more headers if that is the whole answer: to a browser that asks whether it may send the real request.
        From here on the client's address is right in the scope. Raises TooManyRequests.
        """
        self._clients.identify(scope)
        if self._origins is not None:
            headers += self._origins.headers(scope)
            preflight = self._origins.preflight(scope)
            if preflight is not None:
                return preflight
        if self._limiter is None or _is_exempt(scope):
            return None
        assert self._rate_headers is not None
        verdict = await self._limiter.take(network_of(scope))
        headers += self._rate_headers.of(verdict)
        if not verdict.allowed:
            raise TooManyRequests(self._rate_headers.retry_after(verdict))
        return None

    async def close(self) -> None:
        """Disconnect from what counts."""
        if self._limiter is not None:
            await self._limiter.close()


def _is_exempt(scope: MutableMapping[str, Any]) -> bool:
    """Health is asked for by the platform, and often; the master warms the app up before it forks."""
    path = scope["path"]
    return path == "/health" or path.startswith("/health/") or "warmup" in scope["state"]
