"""Cross-origin requests (CORS, https://fetch.spec.whatwg.org): which sites' pages may call this service.

Nothing here depends on cookies, so pages are never allowed to send any. Starlette's CORSMiddleware cannot be used: the
edge stands around all middleware, and its own refusals need the headers as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import Scope

from serving.http.body import Headers

ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

ALLOWED_HEADERS = (
    b"Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Admin-Token, X-Request-ID, "
    b"X-Request-Timeout"
)
EXPOSED_HEADERS = (
    b"Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, X-Cache, X-Model-Fallback, X-Records, "
    b"X-Request-ID"
)
MAX_AGE_SECONDS = b"600"
"""How long a browser may remember the answer to a preflight."""

VARY = (b"vary", b"Origin")


def is_origin(text: str) -> bool:
    """Whether `text` is an origin as a browser sends it: lower case, no path, and neither `*` nor `null`."""
    return ORIGIN.fullmatch(text) is not None


class Origins:
    """The origins whose pages may call."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def headers(self, scope: Scope) -> Headers:
        """The headers of every answer; Vary tells caches that the answer depends on the origin."""
        origin = self._allowed_origin(scope)
        if origin is None:
            return [VARY]
        return [
            VARY,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
        ]

    def preflight(self, scope: Scope) -> Headers | None:
        """The headers that answer a browser's preflight; None for any other request, or from a foreign origin."""
        if scope["method"] != "OPTIONS" or _header(scope, b"access-control-request-method") is None:
            return None
        if self._allowed_origin(scope) is None:
            return None
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", MAX_AGE_SECONDS),
        ]

    def _allowed_origin(self, scope: Scope) -> bytes | None:
        origin = _header(scope, b"origin")
        return origin if origin in self._allowed else None


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
