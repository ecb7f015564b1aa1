"""The bits of ASGI that every request needs: a limited body, an answer of ready bytes, and the edge around the app."""

from __future__ import annotations

import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

import structlog

from serving.errors import BodyTooLarge, UnsupportedBody
from serving.http import problems
from serving.http.admission import Admission
from serving.shared.metrics import ResponseCounter
from serving.telemetry.logs import CURRENT_REQUEST

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger(__name__)


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


HeaderMap = dict[bytes, bytes]
"""Headers by lower-case name; of a name that comes twice, the last."""


def check_json(headers: HeaderMap) -> None:
    """Raise UnsupportedBody unless the body says that it is plain UTF-8 JSON."""
    if headers.get(b"content-type") != b"application/json" and body_type(headers) != b"application/json":
        raise UnsupportedBody("send application/json in UTF-8")
    check_encoding(headers)


def body_type(headers: HeaderMap) -> bytes:
    """The type of a body in UTF-8, in lower case; empty for any other character set."""
    content_type = headers.get(b"content-type", b"")
    kind, *parameters = content_type.lower().replace(b" ", b"").replace(b'"', b"").split(b";")
    return kind if all(parameter in (b"charset=utf-8", b"") for parameter in parameters) else b""


def check_encoding(headers: HeaderMap) -> None:
    """Raise UnsupportedBody if the body is compressed."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedBody("send the body without a content encoding")


async def read_body(headers: HeaderMap, receive: Receive, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes, counted while they arrive. Raises BodyTooLarge, ClientGone.

    How long it may take is the worker's business: it closes connections that are too slow.
    """
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > limit:
        raise BodyTooLarge(f"the body may have {limit} bytes")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise BodyTooLarge(f"the body may have {limit} bytes")
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def stream_body(headers: HeaderMap, receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The same piece by piece, as it arrives."""
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > limit:
        raise BodyTooLarge(f"the body may have {limit} bytes")
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(f"the body may have {limit} bytes")
        yield piece
        more = message.get("more_body", False)


async def respond(send: Send, status: int, content_type: bytes, body: bytes, headers: Iterable[Any] = ()) -> None:
    """Send a whole answer."""
    start = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


class Edge:
    """Around the whole app: gives every request an id, every error its problem, and counts and logs every answer."""

    def __init__(
        self, app: App, *, figures: ResponseCounter, access_log: bool, admission: Admission | None = None
    ) -> None:
        """`admission` looks at every request first; None where nothing is to be looked at."""
        self._app = app
        self._figures = figures
        self._access_log = access_log
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        CURRENT_REQUEST.set(exchange.request_id)
        try:
            preflight = None if self._admission is None else await self._admission.admit(scope, exchange.headers)
            if preflight is not None:
                await exchange.send({"type": "http.response.start", "status": 204, "headers": preflight})
                await exchange.send({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, exchange.send)
        except ClientGone:
            exchange.status = unanswered_status(scope)
        except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is, the client gets an answer
            await exchange.refuse(error)
        finally:
            self._figures.answered(exchange.status)
            if self._access_log and "warmup" not in scope["state"]:
                exchange.log()


def unanswered_status(scope: Scope) -> int:
    """What a request counts as that the app has not answered: 499, its client left; or what the server has sent."""
    status: int = scope["state"].get("refused", 499)
    return status


def _new_id() -> str:
    # unique, not secret; and random is seeded anew in every forked worker
    return f"{random.getrandbits(96):024x}"


class Exchange:
    """One request and its answer, as the edge sees them."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self.status = 0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        kept = given is not None and REQUEST_ID.fullmatch(given)
        self.request_id = given.decode() if given and kept else _new_id()
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.headers: Headers = [(b"x-request-id", self.request_id.encode())]
        """What the answer says whoever gives it."""

    async def send(self, message: Message) -> None:
        """Pass on to the client, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.headers]
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with the problem that `error` is; too late for that, the server cuts the connection."""
        if problems.status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("Request failed", exc_info=error)
        if self.status:
            raise error
        status, headers, body = problems.render(error, self.request_id)
        await respond(self.send, status, problems.CONTENT_TYPE, body, headers)

    def log(self) -> None:
        """One line for the request; the path as it came, percent-encoded, so that it is plain ASCII."""
        seconds = time.perf_counter() - self._started
        client = self._scope.get("client")
        log.info(
            f"Request completed in {seconds:.3f}s",
            method=self._scope["method"],
            path=self._scope["raw_path"][:256].decode("latin-1"),
            status=self.status,
            seconds=round(seconds, 6),
            client=client[0] if client else None,
        )
