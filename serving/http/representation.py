"""How an answer is sent: not at all if the client has it (ETag), compressed if it is large and the client accepts that.

Documents, which change with the models alone, say `private, no-cache`: a client may keep them, and asks whether they
still are current. Everything else is data, `no-store`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

from starlette.responses import Response
from starlette.types import Message

from serving.http.body import Headers
from serving.http.coding import Compressor, compress_well
from serving.http.negotiation import coding_of

MIN_COMPRESSED_BYTES = 1024
"""Fewer bytes fit into one packet anyway."""

COMPRESSIBLE = frozenset(
    {
        b"application/json",
        b"application/javascript",
        b"application/openmetrics-text",
        b"application/problem+json",
        b"application/vnd.apache.arrow.stream",
        b"image/svg+xml",
        b"text/css",
        b"text/csv",
        b"text/html",
        b"text/javascript",
        b"text/markdown",
        b"text/plain",
    }
)
"""Media types that are worth it; event streams are none, because every event would have to be flushed."""

CACHED_BY_CLIENTS = "private, no-cache"
REVALIDATED = (b"cache-control", CACHED_BY_CLIENTS.encode())
NO_STORE = (b"cache-control", b"no-store")
VARY = (b"vary", b"Accept-Encoding")
NOSNIFF = (b"x-content-type-options", b"nosniff")
"""Browsers take an answer for what its type says, whatever it looks like."""


async def revalidate(response: Response) -> None:
    """A dependency of FastAPI's for routes whose answers are documents."""
    response.headers["cache-control"] = CACHED_BY_CLIENTS


async def represent(asked: Iterable[tuple[bytes, bytes]], start: Message, message: Message) -> Compressor | None:
    """Change an answer, whose first part is `message`, to what the headers of its request ask for.

    Returns what compresses the parts after the first.
    """
    is_whole = not message.get("more_body", False)
    body = message.get("body", b"")
    headers = dict(start["headers"])
    is_document = REVALIDATED in start["headers"] and start["status"] == 200 and is_whole
    is_compressible = (
        headers.get(b"content-type", b"").partition(b";")[0] in COMPRESSIBLE
        and b"content-encoding" not in headers
        and (len(body) >= MIN_COMPRESSED_BYTES or not is_whole)
    )
    if not (is_document or is_compressible):
        return None
    wanted = dict(asked)
    coding = coding_of(wanted.get(b"accept-encoding")) if is_compressible else b""
    if is_compressible:
        start["headers"].insert(0, VARY)
    if is_document:
        tag = entity_tag(body, coding)
        start["headers"].append((b"etag", tag))
        if matches(wanted.get(b"if-none-match"), tag):
            start["status"], message["body"] = 304, b""
            start["headers"] = without(start["headers"], b"content-length", b"content-type")
            return None
    if not coding:
        return None
    start["headers"] = [*without(start["headers"], b"content-length"), (b"content-encoding", coding)]
    if not is_whole:
        compressor = Compressor(coding)
        await compressor.compress(message)
        return compressor
    if is_document:
        message["body"] = await asyncio.to_thread(_compressed_document, body, coding)
    else:
        await Compressor(coding).compress(message)
    start["headers"].append((b"content-length", b"%d" % len(message["body"])))
    return None


@lru_cache(maxsize=4)
def _compressed_document(body: bytes, coding: bytes) -> bytes:
    return compress_well(body, coding)


@lru_cache(maxsize=6)
def entity_tag(body: bytes, coding: bytes) -> bytes:
    """The ETag of a document; each compressed form has its own, as RFC 9110 asks for."""
    return b'"%s%s"' % (blake2b(body, digest_size=12).hexdigest().encode(), b"-" + coding if coding else b"")


def matches(if_none_match: bytes | None, tag: bytes) -> bool:
    """Return whether an If-None-Match header names an entity tag, by weak comparison."""
    if if_none_match is None:
        return False
    named = [one.strip().removeprefix(b"W/") for one in if_none_match.split(b",")]
    return tag in named or named == [b"*"]


def without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> Headers:
    """Headers but for those of these names."""
    return [(name, value) for name, value in headers if name not in names]
