"""Pages of other sites: only those that are listed may call, whatever they send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.service import Service
from harness.wire import Answer, Connection, ask, request
from tests.attacks.payloads import PATH, body

SITE = "https://app.example"
STRANGERS = [
    "https://evil.example",
    "null",
    "*",
    "file://",
    "http://app.example",
    "https://app.example:444",
    "https://app.example.evil.example",
    "https://APP.example",
    "https://app.example/",
    "https://app.example, null",
]
JOB = "/v1/jobs"


@pytest.fixture(scope="module")
def open_to_site(few_models: Path) -> Iterator[Service]:
    environ = {"CORS_ORIGINS": f"{SITE}, http://localhost:5173", "RATE_LIMIT": "1000/hour", "MAX_REQUESTS": "0"}
    with Service({"MODEL_DIR": str(few_models)} | environ) as service:
        yield service


def preflight(service: Service, path: str, origin: str, **headers: str) -> Answer:
    asked = request(path, b"", "OPTIONS", origin=origin, access_control_request_method="POST", **headers)
    with Connection(service) as connection:
        connection.send(asked)
        answer = connection.answer(to_head=True)
    assert answer is not None
    return answer


@pytest.mark.parametrize("path", [PATH, JOB, "/health", "/nowhere"])
def test_a_listed_page_may_ask_and_send(open_to_site: Service, path: str) -> None:
    answer = preflight(open_to_site, path, SITE, access_control_request_headers="authorization,content-type")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == SITE
    assert {"POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert {"Authorization", "Content-Type", "traceparent", "tracestate"} <= set(
        answer.headers["access-control-allow-headers"].split(", ")
    )
    assert "access-control-allow-credentials" not in answer.headers
    assert "ratelimit" not in answer.headers, "asking costs nothing"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(PATH, body(), origin=SITE), 200),
        (request(PATH, b"{", origin=SITE), 400),
        (request(PATH, body(), method="PUT", origin=SITE), 405),
        (request("/v1/models", method="GET", origin=SITE), 200),
        (request("/nowhere", method="GET", origin=SITE), 404),
        (request("/v1/jobs/none", method="GET", origin="http://localhost:5173"), 404),
    ],
)
def test_answers_and_refusals_alike_can_be_read_by_a_listed_page(
    open_to_site: Service, sent: bytes, status: int
) -> None:
    answer = ask(open_to_site, sent)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] in (SITE, "http://localhost:5173")
    assert {"X-Cache", "X-Request-ID"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert answer.headers["vary"] == "Origin"


def test_a_stream_of_answers_can_be_read_by_a_listed_page(open_to_site: Service) -> None:
    with Connection(open_to_site) as connection:
        connection.send(request(PATH, body(), origin=SITE, accept="text/event-stream"))
        connection._reader.readline()
        headers = connection._headers()
    assert headers["access-control-allow-origin"] == SITE


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("path", [PATH, JOB])
def test_no_other_page_is_told_anything(open_to_site: Service, path: str, origin: str) -> None:
    asked = preflight(open_to_site, path, origin, access_control_request_headers="authorization")
    sent = ask(open_to_site, request(path, body(), origin=origin))
    assert asked.status in (204, 403)
    for answer in (asked, sent):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["vary"] == "Origin"


def test_without_the_setting_no_page_is_told_anything(service: Service) -> None:
    for answer in (preflight(service, PATH, SITE), ask(service, request(PATH, body(), origin=SITE))):
        assert not [name for name in answer.headers if name.startswith("access-control-") or name == "vary"]
