"""What HTTP clients, caches and proxies count on: HEAD, Allow, Accept, ETag, compression, headers of every answer."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from harness.service import ADMIN_TOKEN, Service
from harness.wire import Answer, Connection, ask, request
from tests.attacks.payloads import GOOD, PATH, UNPACK, body, chunked

BEARER = f"Bearer {ADMIN_TOKEN}"
DOCUMENTS = ["/openapi.json", "/v1/models", "/v1/models/wine", "/v1/models/wine/versions/1"]
READABLE = [*DOCUMENTS, "/health", "/health/live", "/health/ready", "/metrics", "/api/admin/metrics"]
VOLATILE = {"date", "x-request-id", "content-length", "server-timing"}
EVENTS, JSON = "text/event-stream", "application/json"


def get(service: Service, path: str, method: str = "GET", **headers: str) -> Answer:
    with Connection(service) as connection:
        connection.send(request(path, b"", method, content_length=None, authorization=BEARER, **headers))
        answer = connection.answer(to_head=method in ("HEAD", "OPTIONS") or "if_none_match" in headers)
    assert answer is not None
    return answer


@pytest.fixture(scope="module")
def finished_job(service: Service) -> str:
    """A job of some thousand predictions that is done."""
    rows = [json.loads(body())["instances"][0]] * 2000
    sent = {"operation": "predict", "model": "wine", "instances": rows}
    with httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
        job: str = client.post("/v1/jobs", json=sent).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job}/events") as events:
            assert any("event: done" in line for line in events.iter_lines())
    return job


@pytest.mark.parametrize("path", [*READABLE, "/nowhere", "/v1/jobs/none", "/v1/entities/x/predictions"])
@pytest.mark.parametrize("coding", ["gzip", "zstd", "identity"])
def test_head_says_what_get_says_without_a_body(target: Service, path: str, coding: str) -> None:
    with Connection(target) as connection:
        for method in ("HEAD", "GET"):
            connection.send(request(path, method=method, authorization=BEARER, accept_encoding=coding))
        head, whole = connection.answer(to_head=True), connection.answer()
    assert head is not None
    assert whole is not None
    assert head.status == whole.status
    steady = [{name: value for name, value in one.headers.items() if name not in VOLATILE} for one in (head, whole)]
    assert steady[0] == steady[1]
    if path in DOCUMENTS:
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_head_of_a_stream_has_an_end(target: Service, finished_job: str) -> None:
    with Connection(target) as connection:
        for path in ("/v1/entities/x/events", f"/v1/jobs/{finished_job}/events", "/api/admin/events"):
            connection.send(request(path, method="HEAD", authorization=BEARER))
            answer = connection.answer(to_head=True)
            assert answer is not None
            assert answer.headers["content-type"].startswith(EVENTS)
        connection.send(GOOD)
        assert connection.answer().status == 200  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/jobs", "OPTIONS, POST"),
        ("/v1/jobs/none", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/jobs/none/result", "GET, HEAD, OPTIONS"),
        ("/v1/entities/x/records", None),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/api/admin/models:reload", "OPTIONS, POST"),
        (PATH, "OPTIONS, POST"),
    ],
)
def test_allow_is_complete_in_refusals_and_for_options(target: Service, path: str, allowed: str | None) -> None:
    refused, asked = get(target, path, "PUT"), get(target, path, "OPTIONS")
    assert (refused.status, asked.status) == (405, 204)
    assert refused.headers["allow"] == asked.headers["allow"]
    assert allowed in (None, refused.headers["allow"])


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (EVENTS, EVENTS),
        ("Text/Event-Stream", EVENTS),
        ("text/event-stream; charset=utf-8", EVENTS),
        ("text/*", EVENTS),
        ("text/event-stream, */*;q=0.1", EVENTS),
        ("application/json;q=0.2, text/event-stream;q=0.9", EVENTS),
        ('application/json;x=",";q=0.5, text/event-stream', EVENTS),
        ("*/*", JSON),
        ("application/json, text/event-stream;q=0.5", JSON),
        ("text/event-stream;q=0", JSON),
        ("text/event-stream;q=0.000, */*", JSON),
        ("text/event-streams", JSON),
        ("x-text/event-stream", JSON),
        ('image/png;name="text/event-stream"', JSON),
        ("text/event-stream;q=2", JSON),
        ("image/png", JSON),
        (',;,q=,=;"', JSON),
    ],
)
def test_accept_decides_between_an_answer_and_a_stream(target: Service, accept: str, kind: str) -> None:
    with Connection(target) as connection:
        connection.send(request(PATH, body(), accept=accept))
        connection._reader.readline()
        assert connection._headers()["content-type"] == kind


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("text/csv", "text/csv"), ("TEXT/CSV;header=present", "text/csv"), ("text/csv;q=0", JSON), ("*/*", JSON)],
)
def test_result_of_a_job_is_negotiated_and_compressed(
    target: Service, finished_job: str, accept: str, kind: str
) -> None:
    url = f"{target.address}/v1/jobs/{finished_job}/result"
    plain = httpx.get(url, headers={"accept": accept, "accept-encoding": "identity"}, trust_env=False)
    assert plain.headers["content-type"].startswith(kind)
    for coding, unpack in UNPACK.items():
        headers = {"accept": accept, "accept-encoding": coding}
        with httpx.Client(trust_env=False) as client, client.stream("GET", url, headers=headers) as answer:
            packed = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == coding
        assert len(packed) < len(plain.content) / 5
        assert unpack(packed) == plain.content


@pytest.mark.parametrize(
    "kind",
    ["application/json; version=1", 'application/json;charset="UTF-8"', "Application/JSON ; x=y", "application/json;"],
)
def test_parameters_of_the_type_of_a_body_are_taken(target: Service, kind: str) -> None:
    assert ask(target, request(PATH, body(), content_type=kind)).status == 200


def test_another_character_set_is_refused(target: Service) -> None:
    assert ask(target, request(PATH, body(), content_type="application/json; charset=utf-16")).status == 415


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("coding", ["gzip", "zstd", "identity"])
def test_document_that_the_client_has_is_not_sent_again(target: Service, path: str, coding: str) -> None:
    first = get(target, path, accept_encoding=coding)
    assert first.status == 200
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(target, path, accept_encoding=coding, if_none_match=known)
        assert (again.status, again.headers["etag"]) == (304, tag)
        assert "content-length" not in again.headers
    assert get(target, path, "HEAD", accept_encoding=coding, if_none_match='"other"').status == 200


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("GZIP;q=0.5", "gzip"),
        ("br, gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("*", "zstd"),
        ("gzip;q=0", None),
        ("*, zstd;q=0", "gzip"),
        ("gzip;q=0.0, *", "zstd"),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("identity", None),
        ("gzipped", None),
    ],
)
def test_large_answer_is_compressed_if_the_client_accepts_that(
    target: Service, accepted: str, coding: str | None
) -> None:
    plain, answer = get(target, "/openapi.json"), get(target, "/openapi.json", accept_encoding=accepted)
    assert answer.headers.get("content-encoding") == coding
    assert (answer.body if coding is None else UNPACK[coding](answer.body)) == plain.body
    assert (answer.headers["etag"] == plain.headers["etag"]) is (coding is None)
    assert answer.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"


def test_large_prediction_is_compressed_and_a_small_one_or_a_stream_is_not(target: Service) -> None:
    many = json.dumps({"instances": json.loads(body())["instances"] * 200}).encode()
    large = ask(target, request(PATH, many, accept_encoding="gzip"))
    assert len(json.loads(gzip.decompress(large.body))["predictions"]) == 200
    assert "content-encoding" not in ask(target, request(PATH, body(), accept_encoding="gzip")).headers
    with Connection(target) as connection:
        connection.send(request(PATH, many, accept_encoding="gzip", accept=EVENTS))
        connection._reader.readline()
        assert "content-encoding" not in connection._headers()


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        request(PATH, b"{"),
        request(PATH, method="PUT"),
        request("/nowhere", method="GET"),
        request("/health", method="GET"),
        request("/v1/models/nothing", method="GET"),
        request("/metrics", method="GET", authorization=BEARER),
        request("/metrics", method="GET"),
        b"nonsense\r\n\r\n",
        chunked(end=b"zz\r\n"),
        request("/v1/models", method="GET"),
    ],
)
def test_every_answer_says_that_it_is_what_it_says_and_data_is_not_kept(target: Service, data: bytes) -> None:
    answer = ask(target, data)
    assert answer.headers["x-content-type-options"] == "nosniff"
    is_document = data.startswith(b"GET /v1/models HTTP")
    assert answer.headers["cache-control"] == ("private, no-cache" if is_document else "no-store")
