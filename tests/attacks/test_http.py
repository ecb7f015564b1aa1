"""HTTP itself abused: heads, lengths, chunks, methods, pipelines, upgrades."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness.service import ADMIN_TOKEN, Service
from harness.wire import Answer, Connection, ask, check_refusal, request
from serving.http.parser import MAX_FIELDS
from serving.process.kernel import read_rss
from tests.attacks.payloads import GOOD, MARKER, PATH, body, chunked

LIVE = request("/health/live", method="GET")


def answers(service: Service, data: bytes) -> list[Answer]:
    """All answers to what is sent on one connection before the server ends it."""
    found = []
    with Connection(service) as connection:
        connection.send(data)
        while (answer := connection.answer()) is not None:
            found.append(answer)
    return found


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        bytes.fromhex("16030100a5010000a10303") + bytes(160),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nname: a\x00b\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"INVENTED / HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"$MODEL <xml/>\n" * 10,
    ],
)
def test_what_is_not_http_is_refused(target: Service, data: bytes) -> None:
    (answer,) = answers(target, data)
    check_refusal(answer, 400)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("size", [70_000, 200_000, 2_000_000])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda size: request(PATH, body(), x=MARKER + "a" * size),
        lambda size: request(PATH, body(), **{"a" * size: "1"}),
        lambda size: GOOD.replace(b"\r\n\r\n", b"\r\n" + b"a: b\r\n" * (size // 6) + b"\r\n", 1),
        lambda size: request("/" + "a" * size, method="GET"),
        lambda size: request("/health?" + "a" * size, method="GET"),
        lambda size: chunked(body(), end=b"0\r\n" + b"a: b\r\n" * (size // 6) + b"\r\n"),
        lambda size: chunked(body(), end=b"0\r\na: " + b"a" * size + b"\r\n\r\n"),
    ],
    ids=["header", "name", "headers", "path", "query", "trailers", "trailer"],
)
def test_head_of_more_than_64_kb_is_refused(target: Service, spoil: Callable[[int], bytes], size: int) -> None:
    with Connection(target) as connection:
        connection.send(spoil(size))
        answer = connection.answer()
    assert answer is not None
    check_refusal(answer, 431)
    assert MARKER.encode() not in answer.body


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n", chunked(end=b"5;"), chunked(end=b"0\r\nx: ")],
    ids=["path", "header", "name", "extension of a chunk", "trailer"],
)
def test_what_never_ends_is_refused(target: Service, start: bytes) -> None:
    check_refusal(ask(target, start + b"a" * 2_000_000), 431)


def test_as_many_headers_as_anybody_sends_are_answered_and_one_more_is_refused(target: Service) -> None:
    end, more = b"\r\n\r\n", MAX_FIELDS - GOOD.count(b"\r\n") + 2
    assert ask(target, GOOD.replace(end, b"\r\n" + b"a:\r\n" * more + b"\r\n", 1)).status == 200
    check_refusal(ask(target, GOOD.replace(end, b"\r\n" + b"a:\r\n" * (more + 1) + b"\r\n", 1)), 431)


def test_body_in_chunks_of_a_byte_is_answered_in_one_packet_and_in_many(target: Service) -> None:
    data = chunked(*(b"%c" % byte for byte in body() + b" " * 100_000))
    assert ask(target, data).status == 200
    with Connection(target) as connection:
        for start in range(0, len(data), 7001):
            connection.send(data[start : start + 7001])
        connection.send(GOOD)
        assert [answer and answer.status for answer in (connection.answer(), connection.answer())] == [200, 200]


@pytest.mark.parametrize(
    "data",
    [
        request(PATH, chunked(body()).partition(b"\r\n\r\n")[2], transfer_encoding="chunked"),
        request(PATH, b"0\r\n\r\n" + LIVE, content_length=None, transfer_encoding="chunked\r\ncontent-length: 5"),
        request(PATH, body(), x="y\r\ncontent-length: 3"),
        request(PATH, body(), x=f"y\r\ncontent-length: {len(body())}"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="identity"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="chunked, identity"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="chunked, chunked"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="xchunked"),
        request(PATH, b"0\r\n\r\n", content_length=None, transfer_encoding="\x0bchunked"),
        GOOD.replace(b"content-length", b"content-length "),
        GOOD.replace(b"\r\ncontent-length", b"\r\n content-length"),
    ],
)
def test_request_whose_end_can_be_read_in_two_ways_is_refused(target: Service, data: bytes) -> None:
    found = answers(target, data + GOOD)
    assert len(found) == 1, "what follows must not be taken for a request"
    check_refusal(found[0], 400, 415)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"f" * 17 + b"\r\n",
        b"5\r\nhelloXX\r\n",
        b"5 \r\nhello\r\n",
        b"\r\n",
        b"5\rhello",
    ],
)
def test_chunk_of_no_proper_size_is_refused(target: Service, chunks: bytes) -> None:
    check_refusal(ask(target, chunked(end=chunks)), 400)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND"])
def test_other_methods_are_refused_for_predictions(target: Service, method: str) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, method=method))
        answer = connection.answer(to_head=method == "HEAD")
    assert answer is not None
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/wine", "/openapi.json", "/api/admin/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE"])
def test_other_methods_are_refused_for_reading(target: Service, method: str, path: str) -> None:
    answer = ask(target, request(path, method=method, authorization=f"Bearer {ADMIN_TOKEN}"))
    check_refusal(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def test_http_1_0_is_answered_and_closed(target: Service) -> None:
    (answer,) = answers(target, GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_absolute_address_is_taken_for_its_path(target: Service) -> None:
    assert ask(target, request("http://evil.example" + PATH, body())).status == 200


def test_pipelined_requests_are_answered_in_order(target: Service) -> None:
    kinds = [(GOOD, 200), (request("/nothing", method="GET"), 404), (request(PATH, b"{"), 400), (LIVE, 200)]
    goodbye = request("/health/live", method="GET", connection="close")
    found = answers(target, b"".join(data for data, _ in kinds) * 20 + goodbye)
    assert [answer.status for answer in found] == [status for _, status in kinds] * 20 + [200]
    assert ["predictions" in answer.json() for answer in found] == [True, False, False, False] * 20 + [False]


def test_refusal_of_garbage_does_not_run_into_the_answer_before_it(target: Service) -> None:
    found = answers(target, LIVE * 3 + b"nonsense\r\n\r\n")
    assert [answer.status for answer in found] in ([400], [200, 400], [200, 200, 400], [200, 200, 200, 400])


def test_flood_of_pipelined_requests_is_refused_before_it_fills_the_memory(target: Service) -> None:
    before = most = sum(map(read_rss, target.workers))
    flood = b"GET /openapi.json HTTP/1.1\r\n\r\n" * 1000
    with Connection(target, receive_buffer=4096) as connection:
        sent = 0
        while connection.send(flood) and sent < 500:
            sent += 1
            most = max(most, sum(map(read_rss, target.workers)))
    assert sent < 500, "the server must end it"
    assert most - before < 16 * 1024 * 1024


def test_hundreds_of_requests_sent_ahead_are_answered_as_far_as_they_are_read(target: Service) -> None:
    with Connection(target) as connection:
        for _ in range(10):
            assert connection.send(LIVE * 50)
            assert [connection.answer().status for _ in range(50)] == [200] * 50  # type: ignore[union-attr]


def test_client_that_asks_to_continue_is_told_so(target: Service) -> None:
    head, _, content = request(PATH, body(), expect="100-continue").partition(b"\r\n\r\n")
    with Connection(target) as connection:
        connection.send(head + b"\r\n\r\n")
        go_on = connection.answer()
        connection.send(content)
        answer = connection.answer()
    assert go_on is not None
    assert answer is not None
    assert (go_on.status, answer.status) == (100, 200)


def test_client_that_asks_to_continue_with_too_much_is_refused_at_once(target: Service) -> None:
    check_refusal(ask(target, request(PATH, expect="100-continue", content_length="9999999")), 413)


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
def test_wish_for_another_protocol_is_ignored(target: Service, protocol: str) -> None:
    data = request(PATH, body(), connection="Upgrade, HTTP2-Settings", upgrade=protocol, http2_settings="AAMAAABk")
    with Connection(target) as connection:
        for piece in (data[:50], data[50:-7], data[-7:] + GOOD):
            connection.send(piece)
        found = [connection.answer(), connection.answer()]
    assert [answer and answer.status for answer in found] == [200, 200]


def test_early_refusal_is_the_only_answer_to_a_body_that_still_comes(target: Service) -> None:
    wrong = request(PATH, b"x" * 1000, content_type="text/plain")
    with Connection(target) as connection:
        connection.send(wrong[:-500])
        refused = connection.answer()
        connection.send(wrong[-500:] + GOOD)
        good = connection.answer()
    assert refused is not None
    check_refusal(refused, 415)
    assert good is not None
    assert json.loads(good.body)["model"] == "wine"
