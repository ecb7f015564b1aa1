"""Cross-origin requests (CORS, https://fetch.spec.whatwg.org): which other sites' pages may call this service.

Nothing here depends on cookies, so pages are never allowed to send any. Starlette's CORSMiddleware would do, but stands
around the app it is given: the hot path and the edge's own refusals need the headers as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any

ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

ALLOWED_HEADERS = (
    b"Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Admin-Token, X-Request-ID, "
    b"X-Request-Timeout"
)
EXPOSED_HEADERS = (
    b"Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, X-Cache, X-Model-Fallback, X-Records, "
    b"X-Request-ID"
)
MAX_AGE = b"600"
"""Seconds that a browser may remember the answer to a preflight."""

VARY = (b"vary", b"Origin")
Headers = list[tuple[bytes, bytes]]


def is_origin(text: str) -> bool:
    """Whether this is an origin as a browser sends it: lower case, no path, and neither `*` nor `null`."""
    return ORIGIN.fullmatch(text) is not None


class Origins:
    """The origins that may call."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def headers(self, scope: MutableMapping[str, Any]) -> Headers:
        """What every answer says; caches learn from Vary that another origin gets another answer."""
        origin = self._allowed_origin(scope)
        if origin is None:
            return [VARY]
        return [
            VARY,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
        ]

    def preflight(self, scope: MutableMapping[str, Any]) -> Headers | None:
        """What to answer a browser that asks before it sends; None if it does not, or may not."""
        if scope["method"] != "OPTIONS" or _header(scope, b"access-control-request-method") is None:
            return None
        if self._allowed_origin(scope) is None:
            return None
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", MAX_AGE),
        ]

    def _allowed_origin(self, scope: MutableMapping[str, Any]) -> bytes | None:
        origin = _header(scope, b"origin")
        return origin if origin in self._allowed else None


def _header(scope: MutableMapping[str, Any], wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
