"""Bodies of requests, read whole or while they arrive, and the JSON bodies of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from serving.errors import BodyTooLarge, UnsupportedBody
from serving.predict.pieces import Turns

Headers = list[tuple[bytes, bytes]]

HeaderMap = dict[bytes, bytes]
"""Headers by lower-case name; the last one wins if a name comes twice."""


class ClientGone(Exception):
    """The client closed the connection, so there is nobody to answer."""


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
    content_type = headers.get(b"content-type", b"")
    kind, *parameters = content_type.lower().replace(b" ", b"").replace(b'"', b"").split(b";")
    return kind if all(parameter in (b"charset=utf-8", b"") for parameter in parameters) else b""


def check_encoding(headers: HeaderMap) -> None:
    """Raise UnsupportedBody if the body is compressed."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedBody("send the body without a content encoding")


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
