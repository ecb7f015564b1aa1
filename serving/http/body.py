"""Bodies of requests, read whole or while they arrive, what queries say, and the JSON bodies of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from serving.errors import BodiesFull, BodyTooLarge, InvalidRequest, TooManyBytes, UnsupportedBody, UnsupportedCoding
from serving.http.coding import DECOMPRESSORS, TAKEN, inflate
from serving.predict.pieces import Turns
from serving.shared.holdings import Holdings

Headers = list[tuple[bytes, bytes]]

HeaderMap = dict[bytes, bytes]
"""Headers by lower-case name; the last one wins if a name comes twice."""

BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}

MAX_BYTES = 64 * 1024 * 1024
"""Bytes of bodies that all workers together hold at a time, of all clients."""


class ClientGone(Exception):
    """The client closed the connection, so there is nobody to answer."""


def read_boolean(name: str, text: str) -> bool:
    """The value of a parameter in a query. Raises InvalidRequest."""
    if text.lower() not in BOOLEANS:
        raise InvalidRequest(f"{name} must be true or false")
    return BOOLEANS[text.lower()]


async def read_json(request: Request, limit: int) -> bytes:
    """The whole JSON body of a request. Raises UnsupportedBody, BodyTooLarge, ClientGone."""
    headers = dict(request.scope["headers"])
    check_json(headers)
    return await read_body(headers, request.receive, limit)


def answer_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with `content` as JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def describe_body(kind: type[msgspec.Struct], **further: Any) -> dict[str, Any]:
    """The OpenAPI extra of a route that reads `kind` as JSON, with `further` keywords beside its schema."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}", **further}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def check_json(headers: HeaderMap) -> None:
    """Raise UnsupportedBody unless the body is declared as plain UTF-8 JSON."""
    if headers.get(b"content-type") != b"application/json" and body_type(headers) != b"application/json":
        raise UnsupportedBody("send application/json in UTF-8")
    check_encoding(headers)


def body_type(headers: HeaderMap) -> bytes:
    """The media type of a UTF-8 body, in lower case; empty for any other character set."""
    kind, *parameters = headers.get(b"content-type", b"").lower().replace(b'"', b"").split(b";")
    named = [parameter.partition(b"=") for parameter in parameters]
    charsets = [value.strip() for name, _, value in named if name.strip() == b"charset"]
    return kind.strip() if all(charset == b"utf-8" for charset in charsets) else b""


def check_encoding(headers: HeaderMap) -> None:
    """Raise UnsupportedCoding if the body is compressed in a way that HeldBody does not inflate."""
    coding = coding_of_body(headers.items()) if b"content-encoding" in headers else b""
    if coding and coding not in DECOMPRESSORS:
        raise UnsupportedCoding(f"send the body as it is, or with one content encoding of {TAKEN.decode()}")


def coding_of_body(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The one content coding of a body, in lower case; empty for none, and for `identity`."""
    for name, value in headers:
        if name == b"content-encoding":
            coding = value.strip().lower()
            return b"" if coding == b"identity" else coding
    return b""


async def read_body(headers: HeaderMap, receive: Receive, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes. Raises BodyTooLarge, ClientGone.

    It has no timeout of its own: the worker closes connections that are too slow.
    """
    _check_declared(headers, limit)
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        pieces.append(_piece(message, size, limit))
        size += len(pieces[-1])
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def turns_of_client(receive: Receive) -> Iterator[Turns]:
    """Turns that raise ClientGone once the client has left; to be used when its whole body is there."""
    gone = asyncio.ensure_future(receive())

    def check_client() -> None:
        if gone.done():
            raise ClientGone

    try:
        yield Turns(check_client)
    finally:
        gone.cancel()


async def stream_body(headers: HeaderMap, receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The body piece by piece as it arrives, at most `limit` bytes in all. Raises BodyTooLarge, ClientGone."""
    _check_declared(headers, limit)
    size, more = 0, True
    while more:
        message = await receive()
        piece = _piece(message, size, limit)
        size += len(piece)
        yield piece
        more = message.get("more_body", False)


def _check_declared(headers: HeaderMap, limit: int) -> None:
    if int(headers.get(b"content-length", 0)) > limit:
        raise BodyTooLarge(f"the body may have {limit} bytes")


def _piece(message: Message, size: int, limit: int) -> bytes:
    """The bytes of a message that comes after `size` others."""
    if message["type"] == "http.disconnect":
        raise ClientGone
    piece: bytes = message.get("body", b"")
    if size + len(piece) > limit:
        raise BodyTooLarge(f"the body may have {limit} bytes")
    return piece


class Bodies:
    """The bytes of the bodies that workers are receiving, or have received in parts and not answered yet.

    All bodies may have MAX_BYTES in all workers, those of one client half of it. In each worker one at a time may have
    more, such as the CSV of a large job: it is not counted. A body that arrives at once, as nearly all do, is not
    counted either: it is answered before the next can be read.
    """

    def __init__(self, held: Holdings, max_body_bytes: int) -> None:
        """All workers count in `held`. A client may always send one body of `max_body_bytes`."""
        self._max_client_bytes = max(MAX_BYTES // 2, max_body_bytes)
        self._max_bytes = 2 * self._max_client_bytes
        self._held = held
        self._largest: HeldBody | None = None

    def hold(self, body: HeldBody, size: int) -> None:
        """Count more bytes of a body. Raises TooManyBytes, BodiesFull."""
        if body is self._largest:
            return
        of_client = self._held.of(body.client)
        is_full = self._held.total() + size > self._max_bytes
        if is_full or of_client + size > self._max_client_bytes:
            if of_client > body.bytes:
                raise TooManyBytes
            if self._largest is not None:
                raise BodiesFull
            self.release(body)
            self._largest = body
            return
        body.bytes += size
        self._held.add(body.client, size)

    def release(self, body: HeldBody) -> None:
        """Forget a body that is answered."""
        if body is self._largest:
            self._largest = None
        if body.bytes:
            self._held.add(body.client, -body.bytes)
            body.bytes = 0


class HeldBody:
    """The body of one request, which is inflated if it is compressed, and counted while it arrives in parts."""

    __slots__ = ("_bodies", "_in_parts", "_inflated", "_receive", "bytes", "client")

    def __init__(self, bodies: Bodies, client: bytes, receive: Receive, coding: bytes = b"") -> None:
        """`coding` is the content coding of what `receive` returns; one that is unknown is left as it is."""
        self._bodies = bodies
        self._receive = receive
        self._in_parts = False
        self._inflated = inflate(self._compressed(), coding) if coding in DECOMPRESSORS else None
        self.client = client
        self.bytes = 0

    async def receive(self) -> Message:
        """The next message. Raises TooManyBytes, BodiesFull, NotJSON, ClientGone."""
        message = await (self._receive() if self._inflated is None else self._next_inflated(self._inflated))
        if self._in_parts or message.get("more_body"):
            self._in_parts = True
            self._bodies.hold(self, len(message.get("body", b"")))
        return message

    async def _compressed(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def _next_inflated(self, pieces: AsyncIterator[bytes]) -> Message:
        """The next part of the body; the last one is empty, because only then it is known to be the last."""
        piece = await anext(pieces, None)
        if piece is None:
            self._inflated = None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    def release(self) -> None:
        """Called when the request is answered."""
        if self._in_parts:
            self._bodies.release(self)
