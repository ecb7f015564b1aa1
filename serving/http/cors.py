"""Cross-origin requests (CORS, https://fetch.spec.whatwg.org): which sites' pages may call this service.

Nothing here depends on cookies, so pages are never allowed to send any. Starlette's CORSMiddleware is not used: it
answers a foreign preflight 400 instead of 405, and sends no Vary with answers to other origins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import Scope

from serving.http.body import Headers

ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

ALLOWED_HEADERS = (
    b"Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-API-Key, X-Admin-Token, "
    b"X-Request-ID, X-Request-Timeout, If-None-Match, traceparent, tracestate, baggage"
)
EXPOSED_HEADERS = (
    b"ETag, Location, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, X-Cache, X-Model-Fallback, "
    b"X-Model-Forced, X-Records, X-Request-ID"
)
VARY = (b"vary", b"Origin")
"""On every answer: it tells caches that the answer depends on the origin."""

PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-allow-headers", ALLOWED_HEADERS),
    (b"access-control-max-age", b"600"),
]
"""The answer to a browser's preflight, which the browser may remember for so many seconds."""


def is_origin(text: str) -> bool:
    """Return whether `text` is an origin as a browser sends it: lower case, no path, and neither `*` nor `null`."""
    return ORIGIN.fullmatch(text) is not None


class Origins:
    """The origins whose pages may call."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def headers(self, scope: Scope) -> tuple[Headers, Headers | None]:
        """The headers of every answer, and those that alone answer a preflight; None for any other request."""
        sent = dict(scope["headers"])
        origin = sent.get(b"origin")
        if origin is None or origin not in self._allowed:
            return [VARY], None
        allowed = [
            VARY,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
        ]
        is_preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in sent
        return allowed, PREFLIGHT if is_preflight else None
