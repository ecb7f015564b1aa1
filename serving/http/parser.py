"""Reads requests of HTTP/1.1 (RFC 9112), and refuses those that two programs could read in two ways.

Context: if a proxy sees the end of a request elsewhere than the service does, a second request passes it unseen.
uvicorn's parser (llhttp) hands on trailers as headers, stops at `Upgrade`, and hides two spaces and RTSP. Decision: the
lines below, which do not depend on how the bytes arrive; a test compares them with h11. Consequence: they refuse what
RFC 9112 lets a server accept or refuse (bare line feeds, folded lines, equal Content-Lengths).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple, NoReturn, Protocol

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers."""

MAX_FIELDS = 256
"""Headers of a request, or trailers; each costs a microsecond or two here, and again wherever they are looked at."""

MAX_BESIDE_BYTES = 16 * 1024
"""Of a chunked body, the trailers and all that stands beside sizes and data."""

MAX_CHUNKS = 2000
"""Chunks to read at a stretch, of which each may be a byte: some milliseconds."""

SMALL_CHUNK_BYTES, MAX_SMALL_CHUNKS = 16, 250_000
"""A body may have so many smaller chunks: a third of a second. Bytes of larger ones cost little more than others."""

MAX_REMEMBERED_BYTES = 1024
"""A head of fewer bytes is remembered: most clients send the same one again and again, but for their bodies."""

METHODS = frozenset(
    b"GET HEAD POST PUT PATCH DELETE OPTIONS QUERY TRACE CONNECT PROPFIND PROPPATCH MKCOL COPY MOVE".split()
)
ALONE = frozenset(
    (b"host", b"content-length", b"content-type", b"content-encoding", b"authorization", b"x-api-key", b"x-admin-token")
)
"""Headers that come once: of two, a proxy may go by the one and the service by the other."""

REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/(1\.[01])\r\n")
REQUEST_LINE_START = re.compile(rb"[A-Z]{1,20}(?: |$)")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
HOST = re.compile(rb"(?:[0-9A-Za-z\-._~%!$&'()*+,;=]*|\[[0-9A-Za-z:.%\-_~]+\])(?::[0-9]*)?")
LENGTH = re.compile(rb"[0-9]{1,18}")
SIZE = rb"([0-9A-Fa-f]{1,15})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n"
SIZE_START = rb"(?:[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?)?\r?)?"
FIRST_CHUNK, FIRST_CHUNK_START = re.compile(SIZE), re.compile(SIZE_START)
NEXT_CHUNK, NEXT_CHUNK_START = re.compile(rb"\r\n" + SIZE), re.compile(rb"(?:\r(?:\n" + SIZE_START + rb")?)?")
EMPTY_LINES = re.compile(rb"(?:\r\n)*")
UNFINISHED_PATH = re.compile(rb"(?:\r\n)*[A-Z]+ ([^ ?\r\n]*)")


class Refused(Exception):
    """What arrives is no request, or one that is not taken; nothing after it can be read."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class RequestHead(NamedTuple):
    """A request without its body; names of headers are in lower case."""

    method: bytes
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    length: int
    """Bytes of the body, if it is not chunked."""
    is_chunked: bool
    keep_alive: bool
    """False if nothing that comes after this request is one."""
    expects_continue: bool


class Receiver(Protocol):
    """Takes requests; each method may raise Refused."""

    def on_head(self, head: RequestHead) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class RequestParser:
    """Reads the requests of one connection."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._read: Callable[[bytes, int], int] = self._read_head
        """Reads what comes next, from a position to the one that it returns; the same if more bytes are needed."""
        self._held = b""
        """The beginning of a head, a line or trailers whose end has not arrived; or what is left, see `has_more`."""
        self._looked_at = 0
        """How many of these bytes have been looked at, so that a byte more does not cost as much as all before it."""
        self.has_more = False
        """True if `feed` has stopped after MAX_CHUNKS; with no bytes it goes on."""
        self._in_message = False
        self._keep_alive = True
        self._left = 0
        """Bytes of the body, or of its current chunk, that are still to come."""
        self._is_first_chunk = True
        self._beside = 0
        """Bytes of a chunked body that are neither sizes nor data."""
        self._small_chunks = 0

    @property
    def is_reading(self) -> bool:
        """True if a part of a request has arrived, and its end has not."""
        return self._in_message or bool(self._held)

    @property
    def path(self) -> str:
        """The path of a request whose head is not complete, or is refused, as far as it has arrived; empty for none."""
        found = UNFINISHED_PATH.match(self._held)
        return "" if found is None else found[1].decode("latin-1")

    def feed(self, data: bytes) -> None:
        """Hand on what `data` brings. Raises Refused; then no more can be fed."""
        data, self._held, self.has_more = self._held + data, b"", False
        position, size = 0, len(data)
        while position < size:
            try:
                after = self._read(data, position)
            except Refused:
                self._held = data[position : position + MAX_HEAD_BYTES]
                raise
            is_stuck = after == position
            self._looked_at = size - position if is_stuck else 0
            position = after
            if is_stuck or self.has_more:
                break
        self._held = data[position:]

    def _read_head(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r", start):
            return self._skip_empty_lines(data, start)
        end = data.find(b"\r\n\r\n", max(start, start + self._looked_at - 3))
        if (len(data) if end < 0 else end) - start > MAX_HEAD_BYTES:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        if end < 0:
            check_unfinished(data[start:], self._looked_at)
            return start
        parse = parse_repeated_head if end - start < MAX_REMEMBERED_BYTES else parse_head
        head = parse(data[start : end + 2])
        self._in_message, self._keep_alive = True, head.keep_alive
        self._left, self._beside, self._small_chunks, self._is_first_chunk = head.length, 0, 0, True
        self._receiver.on_head(head)
        if head.is_chunked:
            self._read = self._read_chunks
        elif head.length:
            self._read = self._read_sized
        else:
            self._complete()
        return end + 4

    def _skip_empty_lines(self, data: bytes, start: int) -> int:
        skipped = EMPTY_LINES.match(data, start)
        assert skipped is not None
        if skipped.end() == start < len(data) - 1:
            _refuse("this is not HTTP/1.1")
        return skipped.end()

    def _read_sized(self, data: bytes, start: int) -> int:
        body = data[start : start + self._left]
        self._left -= len(body)
        self._receiver.on_body(body)
        if not self._left:
            self._complete()
        return start + len(body)

    def _read_chunks(self, data: bytes, start: int) -> int:
        """Read all chunks that have arrived, and hand on their data as one piece."""
        pieces: list[bytes] = []
        position = start
        for _ in range(MAX_CHUNKS):
            if self._left:
                pieces.append(data[position : position + self._left])
                position += len(pieces[-1])
                self._left -= len(pieces[-1])
                if self._left:
                    break
            size = (FIRST_CHUNK if self._is_first_chunk else NEXT_CHUNK).match(data, position)
            if size is None:
                self._check_unfinished_size(data, position)
                break
            if size[2]:
                self._count_beside(len(size[2]))
            position, self._left, self._is_first_chunk = size.end(), int(size[1], 16), False
            if not self._left:
                self._read = self._read_trailers
                break
        else:
            self.has_more = position < len(data)
        if body := b"".join(pieces):
            if len(body) < SMALL_CHUNK_BYTES * len(pieces):
                self._count_small(len(pieces))
            self._receiver.on_body(body)
        return position

    def _count_small(self, chunks: int) -> None:
        self._small_chunks += chunks
        if self._small_chunks > MAX_SMALL_CHUNKS:
            _refuse("the chunks are too small")

    def _check_unfinished_size(self, data: bytes, position: int) -> None:
        start = FIRST_CHUNK_START if self._is_first_chunk else NEXT_CHUNK_START
        if not start.fullmatch(data, position):
            _refuse("a chunk has no valid size")
        if self._beside + len(data) - position > MAX_BESIDE_BYTES:
            self._count_beside(len(data) - position)

    def _read_trailers(self, data: bytes, start: int) -> int:
        """Read trailers, and drop them: whatever they say comes too late to be taken for a header."""
        if data.startswith(b"\r\n", start):
            self._complete()
            return start + 2
        end = data.find(b"\r\n\r\n", max(start, start + self._looked_at - 3))
        if end < 0:
            if self._beside + len(data) - start > MAX_BESIDE_BYTES:
                self._count_beside(len(data) - start)
            return start
        self._count_beside(end - start)
        parse_fields(data[start : end + 2])
        self._complete()
        return end + 4

    def _count_beside(self, size: int) -> None:
        self._beside += size
        if self._beside > MAX_BESIDE_BYTES:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the trailers or chunk extensions are too large")

    def _complete(self) -> None:
        self._in_message = False
        self._read = self._read_head if self._keep_alive else self._ignore
        self._receiver.on_message_complete()

    def _ignore(self, data: bytes, _start: int) -> int:
        return len(data)


def check_unfinished(data: bytes, looked_at: int = 0) -> None:
    """Raise Refused if the start of a head cannot become a head, so that its client need not wait for a timeout.

    So many bytes of it have been looked at already.
    """
    if not REQUEST_LINE_START.match(data[:21]):
        _refuse("this is not HTTP/1.1")
    line_end = data.find(b"\n", looked_at)
    if line_end < 0:
        return
    if data.find(b"\n", 0, looked_at) < 0:
        _parse_request_line(data[: line_end + 1])
    if data.count(b"\n", looked_at) != data.count(b"\r\n", max(looked_at - 1, 0)):
        _refuse("a line does not end with CR LF")


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    parts = REQUEST_LINE.fullmatch(line)
    if parts is None or parts[1] not in METHODS:
        _refuse("this is not HTTP/1.1")
    return parts[1], parts[2], parts[3]


def parse_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """Names in lower case and values, of lines that each end with CR LF. Raises Refused."""
    if block.count(b"\n") > MAX_FIELDS:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"there may be {MAX_FIELDS} headers")
    found = FIELD.findall(block)
    if sum(map(len, chain.from_iterable(found))) + 3 * len(found) != len(block):  # something between the fields is none
        _refuse("a header is not valid")
    return [(name.lower(), value.strip(b" \t")) for name, value in found]


def parse_head(block: bytes) -> RequestHead:
    """The head of a request, with the CR LF of its last line. Raises Refused."""
    line_end = block.index(b"\n") + 1
    method, target, version = _parse_request_line(block[:line_end])
    is_current = version == b"1.1"
    headers = parse_fields(block[line_end:])
    named = dict(headers)
    if len(named) < len(headers):
        named = _join_repeated(headers)
    host = named.get(b"host", None if is_current else b"")
    if host is None or not _is_host(host):
        _refuse("a request has one valid Host")
    is_chunked = b"transfer-encoding" in named
    if is_chunked and not (
        is_current and named[b"transfer-encoding"].lower() == b"chunked" and b"content-length" not in named
    ):
        _refuse("Transfer-Encoding is chunked, alone and without Content-Length")
    length = named.get(b"content-length", b"0")
    if not LENGTH.fullmatch(length):
        _refuse("Content-Length is one number")
    keep_alive = is_current
    if b"connection" in named:
        options = [option.strip() for option in named[b"connection"].lower().split(b",")]
        keep_alive = b"close" not in options and (is_current or b"keep-alive" in options)
    expected = named.get(b"expect", b"") if is_current else b""
    if expected and expected.lower() != b"100-continue":
        raise Refused(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected")
    keep_alive = keep_alive and method != b"CONNECT"
    return RequestHead(
        method,
        target,
        "1.1" if is_current else "1.0",
        tuple(headers),
        int(length),
        is_chunked,
        keep_alive,
        bool(expected),
    )


parse_repeated_head = lru_cache(maxsize=128)(parse_head)


def _join_repeated(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name, those that come several times as the list that they are. Raises Refused."""
    named: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in named and name in ALONE:
            _refuse(f"{name.decode()} may come once")
        named[name] = named[name] + b", " + value if name in named else value
    return named


@lru_cache(maxsize=64)
def _is_host(value: bytes) -> bool:
    return HOST.fullmatch(value) is not None


def _refuse(detail: str) -> NoReturn:
    raise Refused(HTTPStatus.BAD_REQUEST, detail)
