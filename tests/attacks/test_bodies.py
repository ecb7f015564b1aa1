"""Bodies that are too large, lie about their length, or are not JSON in UTF-8."""

from __future__ import annotations

import gzip
import time

import pytest

from harness.service import Service
from harness.wire import Connection, ask, check_refusal, request
from serving.process.kernel import read_rss
from tests.attacks.payloads import GOOD, MARKER, PACK, PATH, body, chunked

LIMIT = 4 * 1024 * 1024
MEGABYTE = b"1" * 1024 * 1024


def memory(service: Service) -> int:
    return max(read_rss(pid) for pid in service.workers)


def test_declared_size_over_the_limit_is_refused_before_the_body(target: Service) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, content_length="20000000"))
        answer = connection.answer()
    assert answer is not None
    check_refusal(answer, 413)


DECLARED = request(PATH, content_length=str(20 * len(MEGABYTE))), MEGABYTE
CHUNKED = chunked(end=b""), b"%x\r\n%s\r\n" % (len(MEGABYTE), MEGABYTE)


@pytest.mark.parametrize(("head", "piece"), [DECLARED, CHUNKED], ids=["declared", "chunked"])
def test_body_of_20_mb_is_refused_without_keeping_it(target: Service, head: bytes, piece: bytes) -> None:
    before = most = memory(target)
    with Connection(target) as connection:
        connection.send(head)
        for _ in range(20):
            connection.send(piece)
            most = max(most, memory(target))
        answer = connection.answer()
    assert answer is not None
    check_refusal(answer, 413)
    assert most - before < 2 * LIMIT


def test_endless_body_is_refused_while_it_still_comes(target: Service) -> None:
    head, piece = CHUNKED
    with Connection(target) as connection:
        connection.send(head + piece * 5)
        answer = connection.answer()
        assert answer is not None
        check_refusal(answer, 413)


def test_connection_of_a_refused_body_can_be_used_again(target: Service) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, MEGABYTE * 5) + GOOD)
        refused, good = connection.answer(), connection.answer()
    assert refused is not None
    assert good is not None
    assert (refused.status, good.status) == (413, 200)


def test_body_in_chunks_of_one_byte_is_answered(target: Service) -> None:
    content = body()
    assert ask(target, chunked(*(content[i : i + 1] for i in range(len(content))))).status == 200


def test_body_shorter_than_declared_ends_without_an_answer(target: Service) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, body(), content_length=str(len(body()) + 1)))
        connection.finish()
        assert connection.answer() is None


def test_body_longer_than_declared_is_refused(target: Service) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, body(), content_length=str(len(body()) - 20)))
        for _ in ("the body, cut short", "the rest, which is no request"):
            answer = connection.answer()
            assert answer is not None
            check_refusal(answer, 400)
        assert connection.answer() is None


@pytest.mark.parametrize("length", ["-1", "+5", "0x5", "5 5", "5,5", "5, 6", "1e3", "", "9" * 20, "9" * 5000, "\u0665"])
def test_length_that_is_no_number_is_refused(target: Service, length: str) -> None:
    check_refusal(ask(target, request(PATH, body(), content_length=length)), 400)


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "gzip, identity", "aws-chunked", "gzip;q=1", "*"])
def test_body_in_another_encoding_is_refused(target: Service, encoding: str) -> None:
    answer = ask(target, request(PATH, gzip.compress(body()), content_encoding=encoding))
    check_refusal(answer, 415)
    assert answer.headers["accept-encoding"] == "gzip, zstd, deflate"


@pytest.mark.parametrize("encoding", PACK)
def test_compressed_body_is_read(target: Service, encoding: str) -> None:
    plain, packed = body(), PACK[encoding](body())
    assert ask(target, request(PATH, packed, content_encoding=encoding)).status == 200
    assert ask(target, request(PATH, plain, content_encoding="identity")).status == 200
    assert ask(target, request(PATH, packed, content_encoding=encoding.upper())).status == 200
    check_refusal(ask(target, request(PATH, plain, content_encoding=encoding)), 400)
    check_refusal(ask(target, request(PATH, packed[:-5], content_encoding=encoding)), 400)
    check_refusal(ask(target, request(PATH, packed)), 400)


@pytest.mark.parametrize("path", [PATH, "/v1/jobs", "/v1/jobs?operation=predict&model=wine", "/v1/entities/x/records"])
@pytest.mark.parametrize("encoding", PACK)
def test_bomb_is_refused_without_keeping_it(target: Service, path: str, encoding: str) -> None:
    bomb = PACK[encoding](b"0," * (100 << 20))
    assert len(bomb) < LIMIT
    kind = "text/csv" if "?" in path else "application/json"
    before = memory(target)
    answer = ask(target, request(path, bomb, content_encoding=encoding, content_type=kind))
    check_refusal(answer, 422 if "?" in path else 413)  # a CSV is read as it comes: its first line is too long
    assert memory(target) - before < 3 * LIMIT


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; application/json",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json, text/plain",
        "application/jsonx",
        "application/octet-stream",
        "*/*",
        "",
        None,
    ],
)
def test_body_that_does_not_say_json_is_refused(target: Service, kind: str | None) -> None:
    check_refusal(ask(target, request(PATH, body(), content_type=kind)), 415)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_in_another_encoding_is_not_json(target: Service, encoding: str) -> None:
    check_refusal(ask(target, request(PATH, body().decode().encode(encoding))), 400)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_flood_of_form_fields_is_refused_quickly(target: Service, kind: str) -> None:
    part = f'--x\r\ncontent-disposition: form-data; name="{MARKER}"\r\n\r\n1\r\n'
    fields = (part * 30_000 if "multipart" in kind else f"{MARKER}=1&" * 100_000).encode()
    started = time.perf_counter()
    answer = ask(target, request(PATH, fields, content_type=kind))
    seconds = time.perf_counter() - started
    check_refusal(answer, 415)
    assert MARKER.encode() not in answer.body
    assert seconds < 5


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/openapi.json", "/api/admin/metrics"])
def test_flood_of_form_fields_to_other_routes_is_refused(target: Service, path: str) -> None:
    fields = b"a=1&" * 100_000
    check_refusal(ask(target, request(path, fields, content_type="application/x-www-form-urlencoded")), 401, 405)
