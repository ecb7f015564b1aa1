"""The edge around the app: every request is admitted, gets an id, an answer, a count and a line in the log."""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import TooManyRequests
from serving.http import problems
from serving.http.body import Bodies, ClientGone, Headers, HeldBody, coding_of_body
from serving.http.coding import Compressor
from serving.http.cors import Origins
from serving.http.keys import Keys, key_of
from serving.http.rate_limit import Limiters
from serving.http.representation import MIN_COMPRESSED_BYTES, NO_STORE, NOSNIFF, represent
from serving.telemetry.access_log import AccessLog
from serving.telemetry.logs import CURRENT_KEY, CURRENT_REQUEST

MAPPED = bytes(10) + b"\xff\xff"
"""The first bytes of an IPv4 address written as IPv6."""


def identify(scope: Scope, proxies: int) -> None:
    """Write the client's address into the scope, where ASGI keeps it, as found behind a number of proxies.

    Each appends the address of its peer. The client's address is therefore the one that the outermost proxy has
    appended, counted from the right; the client may have written anything before it. If X-Forwarded-For has too
    few or invalid addresses, the request has not come through all proxies, and the peer of the connection counts.
    """
    given = _forwarded_address(scope["headers"], proxies) if proxies else None
    if given is not None:
        scope["client"] = (given, 0)


def _forwarded_address(headers: Iterable[tuple[bytes, bytes]], proxies: int) -> str | None:
    """The address at place `proxies` from the right of X-Forwarded-For; None if there is none."""
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    if not lines:
        return None
    # only the end of a long list is split
    parts = b",".join(lines).rsplit(b",", proxies)
    if len(parts) < proxies:
        return None
    address = _without_port(parts[-proxies].strip(b" \t").decode("latin-1"))
    return address if packed(address) is not None else None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def packed(address: str) -> bytes | None:
    """The bytes of an IP address, 4 or 16; None for anything else."""
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        whole = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return None
    return whole[12:] if whole.startswith(MAPPED) else whole


def network_of(scope: Scope) -> bytes:
    """The network that counts as one client: an IPv4 address, or a /64 of IPv6, which one household usually has.

    All clients without an address, as over a Unix socket, count as one.
    """
    client = scope.get("client")
    return (packed(client[0]) or b"")[:8] if client else b""


REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

MAX_LOGGED_PATH_BYTES = 256

log = structlog.get_logger(__name__)


NO_NOTES: tuple[str, dict[str, Any]] = "", {}


def note(scope: Scope, text: str, details: dict[str, Any]) -> None:
    """Have the request's line in the access log say `text`, too, and show details."""
    before = scope["state"].get("notes")
    if before is not None:
        text, details = f"{before[0]}, {text}", before[1] | details
    scope["state"]["notes"] = text, details


async def respond(send: Send, status: int, content_type: bytes, body: bytes, headers: Iterable[Any] = ()) -> None:
    """Send a whole answer."""
    start = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


class Edge:
    """Around the whole app: gives every request an id, turns every error into a problem, counts and logs answers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        count_response: Callable[[int, str], None],
        access_log: AccessLog | None,
        trusted_proxies: int,
        origins: Origins | None,
        limiters: Limiters,
        keys: Keys,
        bodies: Bodies,
    ) -> None:
        """`trusted_proxies` stand before the service; pages of `origins` may call.

        `limiters` and `keys` outlive reloads.
        """
        self._app = app
        self._count_response = count_response
        self._access_log = access_log
        self._trusted_proxies = trusted_proxies
        self._origins = origins
        self._limiter = limiters.of_addresses
        self._key_limiter = limiters.of_keys
        self._keys = keys
        self._bodies = bodies
        self._admits_all = not (trusted_proxies or origins or self._limiter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        CURRENT_REQUEST.set(exchange.request_id)
        CURRENT_KEY.set("")
        body: HeldBody | None = None
        try:
            preflight = None if self._admits_all else await self._admit(scope, exchange.headers)
            if preflight is not None:
                await exchange.send({"type": "http.response.start", "status": 204, "headers": preflight})
                await exchange.send({"type": "http.response.body", "body": b""})
            else:
                if "warmup" not in scope["state"]:
                    await self._authorize(scope, exchange.headers)
                body = HeldBody(self._bodies, client_of(scope), receive, coding_of_body(scope["headers"]))
                # an app need not know HEAD: its answer is that to GET, of which `exchange` sends no body
                asked = {**scope, "method": "GET"} if exchange.is_head else scope
                await self._app(asked, body.receive, exchange.send)
        except ClientGone:
            exchange.status = unanswered_status(scope)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error gets an answer
            await exchange.refuse(error)
        finally:
            if body is not None:
                body.release()
            self._count_response(exchange.status, key_of(scope).name)
            if self._access_log is not None and "warmup" not in scope["state"]:
                self._access_log.add(exchange.line())

    async def _authorize(self, scope: Scope, headers: Headers) -> None:
        """Keep the request's key in `scope`, and charge it for the request.

        Raises NotAuthorized, NotPermitted, RouteNotFound, TooManyRequests.
        """
        key = scope["state"]["key"] = self._keys.check(scope)
        CURRENT_KEY.set(key.name)
        if key.rate is None or self._key_limiter is None:
            return
        verdict = await self._key_limiter.take(client_of(scope), key.rate)
        headers += self._key_limiter.headers(verdict, key.rate, b"key")
        if not verdict.allowed:
            raise TooManyRequests(self._key_limiter.retry_after(verdict, key.rate), "with this key")

    async def _admit(self, scope: Scope, headers: Headers) -> Headers | None:
        """Correct the client's address in `scope`, and add to `headers` what every answer to this request has to say.

        Returns more headers if they are the whole answer, to a browser's preflight. Raises TooManyRequests.
        """
        identify(scope, self._trusted_proxies)
        if self._origins is not None:
            for_every_answer, preflight = self._origins.headers(scope)
            headers += for_every_answer
            if preflight is not None:
                return preflight
        if self._limiter is None or _is_exempt(scope):
            return None
        verdict = await self._limiter.take(network_of(scope))
        headers += self._limiter.headers(verdict)
        if not verdict.allowed:
            raise TooManyRequests(self._limiter.retry_after(verdict))
        return None


def client_of(scope: Scope) -> bytes:
    """Who sends a request: the name of its key, or else its network; as bytes, none is the other."""
    name = key_of(scope).name
    return b"key:" + name.encode() if name else network_of(scope)


def account_of(scope: Scope) -> str:
    """The client as text, to be kept with what counts against its limits."""
    name = key_of(scope).name
    return f"key:{name}" if name else f"address:{network_of(scope).hex()}"


def _is_exempt(scope: Scope) -> bool:
    """Platforms ask for the health often; the master warms the app up before it forks."""
    path = scope["path"]
    return path in ("/health", "/ping") or path.startswith(("/health/", "/v2/health/")) or "warmup" in scope["state"]


def unanswered_status(scope: Scope) -> int:
    """The status to count for a request without an answer: 499 if its client left, or what the server has sent."""
    status: int = scope["state"].get("refused", 499)
    return status


def _given_id(headers: Headers) -> str | None:
    """The id that the client has given its request, if it is one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode() if REQUEST_ID.fullmatch(value) else None
    return None


def _new_id() -> str:
    # unique, not secret; and random is seeded anew in every forked worker
    return random.randbytes(12).hex()  # noqa: S311


def _raw_path(scope: Scope) -> bytes:
    """The path as it came, which not every server gives."""
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"]).encode() if raw is None else raw


class Exchange:
    """One request and its answer, as the edge sees them."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self.status = 0
        self.request_id = _given_id(scope["headers"]) or _new_id()
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.is_head = scope["method"] == "HEAD"
        self._start: Message | None = None
        """The start of the answer, until the first part of its body is there."""
        self._compressor: Compressor | None = None
        self._is_complete = False
        self.headers: Headers = [(b"x-request-id", self.request_id.encode()), NOSNIFF]
        """The headers of every answer to this request."""

    async def send(self, message: Message) -> None:
        """Pass a message on to the client, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"] = [*message.get("headers", ()), *self.headers]
            if self._scope["method"] == "POST" or not any(name == b"cache-control" for name, _ in headers):
                headers.append(NO_STORE)
            self._start = message
        elif not self._is_complete:
            await self._send_part(message)

    async def _send_part(self, message: Message) -> None:
        start, self._start = self._start, None
        if start is not None:
            is_small = len(message["body"]) < MIN_COMPRESSED_BYTES and not message.get("more_body")
            if not is_small or self._scope["method"] != "POST":
                self._compressor = await represent(self._scope["headers"], start, message)
            await self._send(start)
        elif self._compressor is not None:
            await self._compressor.compress(message)
        if self.is_head:
            self._is_complete = True
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with the problem that `error` is, or raise it if an answer has begun: the server then disconnects."""
        if problems.status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("Request failed", exc_info=error)
        if self.status and self._start is None:
            raise error
        # a client of another protocol may be known by its body alone
        form = self._scope["state"].get("form") or problems.form_of(self._scope["path"])
        status, headers, body = problems.render(error, self.request_id, form)
        await respond(self.send, status, form.content_type, body, headers)

    def line(self) -> dict[str, Any]:
        """The line of the access log, with what routes have noted, and the path as it came, so that it is ASCII."""
        seconds = time.perf_counter() - self._started
        client = self._scope.get("client")
        event = f"Request completed in {seconds:.3f}s"
        notes, details = self._scope["state"].get("notes", NO_NOTES)
        return {
            "event": f"{event}, {notes}" if notes else event,
            "method": self._scope["method"],
            "path": _raw_path(self._scope)[:MAX_LOGGED_PATH_BYTES].decode("latin-1"),
            "status": self.status,
            "seconds": round(seconds, 6),
            "client": client[0] if client else None,
            **details,
        }
