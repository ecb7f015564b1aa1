"""The parser beside h11, which is strict and slow: what it accepts, h11 reads in the same way."""

from __future__ import annotations

from contextlib import suppress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.parser import (
    MAX_CHUNKS,
    MAX_SMALL_CHUNKS,
    SMALL_CHUNK_BYTES,
    Refused,
    RequestHead,
    RequestParser,
)

Requests = list[tuple[bytes, bytes, str, list[tuple[bytes, bytes]], bytes]]

PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.0\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"Host: a\r\n",
    b"host: b:80\r\n",
    b"Content-Length: 5\r\n",
    b"content-length:0\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x, chunked\r\n",
    b"transfer-encoding: Chunked\r\n",
    b"Connection: close\r\n",
    b"connection: Keep-Alive\r\n",
    b"Connection: close, upgrade\r\n",
    b"Expect: 100-continue\r\n",
    b"x:  y \t\r\n",
    b"x: \xff\r\n",
    b" folded\r\n",
    b"x : y\r\n",
    b"x\r\n",
    b":\r\n",
    b"x: \x00\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n",
    b"0005\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"0\r\nx: y\r\n\r\n",
    b"0;x\r\n\r\n",
]
HEADS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
]
streams = st.lists(st.sampled_from(PIECES + HEADS) | st.binary(max_size=3), max_size=14).map(b"".join)
STREAMS = st.tuples(st.sampled_from([b"", *HEADS]), streams).map(b"".join)


class Received:
    """Notes the requests of a parser that were complete, and whether the rest was refused."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.complete: Requests = []
        self.is_refused = False
        parser = RequestParser(self)
        try:
            for piece in pieces:
                parser.feed(piece)
                while parser.has_more:
                    parser.feed(b"")
        except Refused:
            self.is_refused = True

    def on_head(self, head: RequestHead) -> None:
        self._head, self._body = head, b""

    def on_body(self, body: bytes) -> None:
        assert body
        self._body += body

    def on_message_complete(self) -> None:
        head = self._head
        self.complete.append((head.method, head.target, head.version, list(head.headers), self._body))
        self.keep_alive = head.keep_alive


class Stricter(Exception):
    """h11 skips no empty line between requests, and closes after each of HTTP/1.0."""


def read_by_h11(data: bytes, most: int) -> tuple[Requests, bool]:
    """The first `most` complete requests as h11 reads them, and whether the last keeps the connection alive."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
    connection.receive_data(data)
    complete: Requests = []
    while len(complete) < most:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage), event
            headers = [(name.lower(), value) for name, value in request.headers.raw_items()]
            complete.append((request.method, request.target, request.http_version.decode(), headers, body))
            keeps = connection.their_state is not h11.MUST_CLOSE
            if len(complete) < most:
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.trailing_data[0].startswith(b"\r\n") or not keeps:
                    raise Stricter
                connection.start_next_cycle()
    return complete, keeps


@given(STREAMS)
def test_what_is_accepted_is_what_h11_reads(data: bytes) -> None:
    received = Received([data])
    if received.complete:
        with suppress(Stricter):
            complete, keeps = read_by_h11(data.lstrip(b"\r\n"), len(received.complete))
            assert complete == received.complete
            # HTTP/1.0 with keep-alive is closed by h11
            assert received.keep_alive == keeps or received.complete[-1][2] == "1.0"


@given(STREAMS, st.data())
def test_the_same_is_received_however_the_bytes_arrive(data: bytes, choice: st.DataObject) -> None:
    whole = Received([data])
    cuts = sorted(choice.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    cut = Received([data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)])
    bytewise = Received([data[position : position + 1] for position in range(len(data))])
    assert whole.complete == cut.complete == bytewise.complete
    assert whole.is_refused == cut.is_refused == bytewise.is_refused


def test_many_chunks_are_read_in_stretches() -> None:
    chunks, stretches = [b"%x" % number for number in range(2 * MAX_CHUNKS + 1)], 0
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    received = Received([])
    parser = RequestParser(received)
    parser.feed(HEADS[2] + body + b"0\r\n\r\n" + HEADS[0])
    while parser.has_more:
        assert not received.complete
        parser.feed(b"")
        stretches += 1
    assert stretches == 2
    assert [content for *_, content in received.complete] == [b"".join(chunks), b""]


def test_a_body_has_only_so_many_small_chunks() -> None:
    assert not Received([HEADS[2], *[b"1\r\nx\r\n" * 1000] * (MAX_SMALL_CHUNKS // 1000), b"0\r\n\r\n"] * 2).is_refused
    assert Received([HEADS[2], *[b"1\r\nx\r\n" * 1000] * (MAX_SMALL_CHUNKS // 1000 + 1)]).is_refused
    line = b"%x\r\n%b\r\n" % (SMALL_CHUNK_BYTES, b"x" * SMALL_CHUNK_BYTES)
    assert not Received([HEADS[2], line * (MAX_SMALL_CHUNKS + 1)]).is_refused


@pytest.mark.parametrize("data", HEADS[:2])
def test_good_requests_are_received(data: bytes) -> None:
    received = Received([data * 3])
    assert len(received.complete) == 3
    assert not received.is_refused
