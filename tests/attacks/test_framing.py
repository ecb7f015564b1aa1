"""Where a request ends and what belongs to it: the same however the bytes arrive, and refused where it is in doubt."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from harness.service import Service
from harness.wire import Answer, Connection, check_refusal, request
from tests.attacks.payloads import GOOD, PATH, body, chunked

LIVE = request("/health/live", method="GET")
BAD = request(PATH, b"{")
GARBAGE = b"nonsense\r\n\r\n"


def in_one_packet(connection: Connection, data: bytes) -> None:
    connection.send(data)


def byte_by_byte(connection: Connection, data: bytes) -> None:
    for position in range(len(data)):
        if not connection.send(data[position : position + 1]):
            return


@pytest.fixture(params=[in_one_packet, byte_by_byte], ids=["one packet", "byte by byte"])
def answers(request: pytest.FixtureRequest, target: Service) -> Callable[[bytes], list[Answer]]:
    """All answers to what is sent on one connection, which the server then closes."""

    def send(data: bytes) -> list[Answer]:
        found = []
        with Connection(target) as connection:
            connection._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request.param(connection, data)
            while (answer := connection.answer()) is not None:
                found.append(answer)
        return found

    return send


Answers = Callable[[bytes], list[Answer]]
GOODBYE = request("/health/live", method="GET", connection="close")


@pytest.mark.parametrize(
    "trailer",
    [
        "content-type: text/plain",
        "X-Request-ID: from-a-trailer",
        "content-length: 5",
        "transfer-encoding: chunked",
        "connection: close",
        "host: evil.example",
        "x-request-timeout: nonsense",
        "expect: 100-continue",
    ],
)
def test_trailer_is_no_header_of_its_request_nor_of_the_next(answers: Answers, trailer: str) -> None:
    end = f"0\r\n{trailer}\r\nx: y\r\n{trailer}\r\n\r\n".encode()
    found = answers(chunked(body(), end=end) + GOOD + chunked(body(), end=end) + GOODBYE)
    assert [answer.status for answer in found] == [200] * 4
    assert all(answer.headers["x-request-id"] != "from-a-trailer" for answer in found)


@pytest.mark.parametrize("trailers", [b"no colon\r\n", b"a: b\n", b" folded: 1\r\n", b"a b: c\r\n", b"a: \x00\r\n"])
def test_trailers_that_are_none_are_refused(answers: Answers, trailers: bytes) -> None:
    (answer,) = answers(chunked(body(), end=b"0\r\n" + trailers + b"\r\n" + b"\r\n") + GOOD)
    check_refusal(answer, 400)


@pytest.mark.parametrize(
    "garbage",
    [GARBAGE, b"GET /\r\n\r\n", request(PATH, b"1", transfer_encoding="chunked"), b"\x16\x03\x01\x00\xa5" * 3],
    ids=["words", "half a line", "two lengths", "TLS"],
)
def test_refusal_comes_after_the_answers_to_what_was_received(answers: Answers, garbage: bytes) -> None:
    found = answers(GOOD + LIVE + BAD + garbage + GOOD)
    assert [answer.status for answer in found] == [200, 200, 400, 400]
    assert "predictions" in found[0].json()
    assert [answer.headers.get("connection") for answer in found] == [None, None, None, "close"]
    check_refusal(found[-1], 400)


def test_body_that_is_refused_halfway_is_answered_in_its_place(answers: Answers) -> None:
    found = answers(GOOD + chunked(end=b"5\r\nhelloXX\r\n") + GOOD)
    assert [answer.status for answer in found] == [200, 400]
    assert found[1].headers["connection"] == "close"


def test_everything_received_is_answered_although_the_last_closes(answers: Answers) -> None:
    found = answers(GOOD + LIVE + request(PATH, body(), connection="close") + GOOD + GARBAGE)
    assert [answer.status for answer in found] == [200, 200, 200]
    assert [answer.headers.get("connection") for answer in found] == [None, None, "close"]


@pytest.mark.parametrize(
    "data",
    [
        request(PATH, body(), host=None),
        request(PATH, body(), host="localhost\r\nhost: localhost"),
        request(PATH, body(), host="localhost\r\nhost: evil.example"),
        *(
            request(PATH, body(), **{name: f"{value}\r\n{name.replace('_', '-')}: {value}"})
            for name, value in {
                "authorization": "Bearer x",
                "x-api-key": "x",
                "x-admin-token": "x",
                "content_type": "application/json",
                "content_encoding": "identity",
            }.items()
        ),
        request(PATH, body(), host="a b"),
        request(PATH, body(), host="user@localhost"),
        request(PATH, body(), host="localhost/path"),
        request(PATH, body(), host="localhost, evil.example"),
        GOOD.replace(b"POST ", b"POST  "),
        GOOD.replace(b" HTTP/1.1", b"  HTTP/1.1"),
        GOOD.replace(b" HTTP/1.1", b" HTTP/1.1 "),
        GOOD.replace(b" HTTP/1.1", b"\tHTTP/1.1"),
        GOOD.replace(b"POST ", b"POST\t"),
        b" " + GOOD,
        GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/1.2"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/0.9"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/01.1"),
        GOOD.replace(b"HTTP/1.1", b"http/1.1"),
        GOOD.replace(b"HTTP/1.1", b"RTSP/1.0"),
        GOOD.replace(b"HTTP/1.1", b"ICE/1.0"),
        request("rtsp://localhost/", method="DESCRIBE").replace(b"HTTP/1.1", b"RTSP/1.0"),
        request("*", method="OPTIONS").replace(b"HTTP/1.1", b"RTSP/1.0"),
        GOOD.replace(b"\r\ncontent-length", b"\ncontent-length"),
        GOOD.replace(b"\r\ncontent-length", b"\rcontent-length"),
        GOOD.replace(b"\r\ncontent-length", b"\r\n\tx\r\ncontent-length"),
        GOOD.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
        request("localhost:443", method="CONNECT"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="x, chunked"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="chunked, x"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="gzip, chunked"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="x\r\ntransfer-encoding: chunked"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="chunked;q=1"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding=""),
        request(PATH, b"0\r\n\r\n", transfer_encoding="chunked"),
        request(PATH, body(), content_length="+5"),
        request(PATH, body(), content_length="0x10"),
        request(PATH, body(), content_length="5, 5"),
        request(PATH, body(), content_length=""),
        request(PATH, body(), content_length="9" * 30),
        chunked(body()).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_request_in_doubt_is_refused_and_nothing_after_it_is_read(answers: Answers, data: bytes) -> None:
    found = answers(LIVE + data + GOOD)
    assert len(found) == 2
    check_refusal(found[1], 400)
    assert found[1].headers["connection"] == "close"


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
@pytest.mark.parametrize("option", ["Upgrade", "close, Upgrade", "Upgrade, close", "keep-alive, Upgrade"])
def test_upgrade_is_ignored_and_changes_neither_version_nor_end(answers: Answers, version: bytes, option: str) -> None:
    data = request(PATH, body(), connection=option, upgrade="h2c").replace(b"HTTP/1.1", version)
    found = answers(data + GOODBYE)
    closes = "close" in option or (version == b"HTTP/1.0" and "keep-alive" not in option)
    assert [answer.status for answer in found] == ([200] if closes else [200, 200])
    assert found[-1].headers["connection"] == "close"


def test_connect_is_refused_and_what_follows_is_no_request(answers: Answers) -> None:
    (answer,) = answers(request(PATH, method="CONNECT", content_length=None) + GOOD)
    check_refusal(answer, 405)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("length", "kind", "status"), [("50", "text/plain", 415), ("9999999", "application/json", 413)]
)
def test_early_refusal_of_a_body_that_waits_to_be_sent_closes(
    target: Service, length: str, kind: str, status: int
) -> None:
    head = request(PATH, expect="100-continue", content_length=length, content_type=kind)
    with Connection(target) as connection:
        connection.send(head)
        refused = connection.answer()
        connection.send(GOOD)
        assert connection.is_closed()
    assert refused is not None
    check_refusal(refused, status)
    assert refused.headers["connection"] == "close"


def test_unknown_expectation_is_refused(answers: Answers) -> None:
    (answer,) = answers(request(PATH, body(), expect="a miracle") + GOOD)
    check_refusal(answer, 417)


def test_http_1_0_is_told_nothing_of_chunks_nor_to_continue(answers: Answers) -> None:
    old = request(PATH, body(), expect="100-continue", connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    found = answers(old + old + GOODBYE)
    assert [answer.status for answer in found] == [200, 200, 200]
    assert [answer.headers["connection"] for answer in found] == ["keep-alive", "keep-alive", "close"]


def test_stream_to_http_1_0_ends_with_its_connection(target: Service) -> None:
    old = request(PATH, body(), accept="text/event-stream", connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    with Connection(target) as connection:
        connection.send(old)
        head, _, events = connection._reader.read().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert events.startswith(b"id: 0\nevent: prediction\n")
    assert events.endswith(b"\n\n")


def test_request_before_a_half_close_is_answered(target: Service) -> None:
    with Connection(target) as connection:
        connection.send(GOOD + LIVE + GOOD[:40])
        connection.finish()
        found = [connection.answer(), connection.answer()]
        assert connection.is_closed()
    assert [answer and answer.status for answer in found] == [200, 200]


def test_client_that_resets_its_connection_leaves_no_traceback(target: Service) -> None:
    before = len(target.log())
    for count in range(200):
        with Connection(target) as connection:
            connection.send((GOOD + LIVE) * (1 + count % 40))
            connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    written = target.log()[before:]
    assert "Traceback" not in written
    assert '"level":"error"' not in written
