"""Deadlines, retries and resumed streams of both clients, against answers that a test makes."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import serving.client.calls
from forkserve import AsyncClient, Client
from serving.client.errors import (
    AuthenticationError,
    BecameJob,
    ConflictError,
    ForkserveError,
    InvalidInputError,
    JobFailedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServiceError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnreachableError,
)

ROW = [[1.0]]
ANSWER = {"model": "m", "version": "1", "predictions": [1.5]}
JOB = {
    "id": "j",
    "operation": "predict",
    "model": "m",
    "version": "1",
    "state": "done",
    "created": "2026-01-31T12:00:00Z",
}

Step = httpx.Response | Exception
Ask = Callable[..., Any]


def ok(content: Any = ANSWER, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=content)


def refused(status: int, **headers: str) -> httpx.Response:
    problem = {"type": "about:blank", "title": "Title", "status": status, "detail": "why", "request_id": "r"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=problem, headers=named)


def events(*frames: str) -> httpx.Response:
    return httpx.Response(200, text="".join(f"{frame}\n\n" for frame in frames))


class Script:
    """Gives one answer after the other, and keeps what was asked."""

    def __init__(self, *steps: Step) -> None:
        self.requests: list[httpx.Request] = []
        self._steps = iter(steps)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = next(self._steps)
        if isinstance(step, Exception):
            raise step
        # a response can be read once
        return httpx.Response(step.status_code, headers=step.headers, content=step.content) if step.is_closed else step


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Calls an operation of a client with the answers of a script; of an iterator, all its items."""
    monkeypatch.setattr(serving.client.calls, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(serving.client.calls, "PAUSE_SECONDS", 0.0)

    def call_blocking(script: Script, name: str, *args: Any, **kwargs: Any) -> Any:
        with Client(transport=httpx.MockTransport(script)) as client:
            found = getattr(client, name)(*args, **kwargs)
            return list(found) if isinstance(found, Iterator) else found

    async def call_suspending(script: Script, name: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(transport=httpx.MockTransport(script)) as client:
            found = getattr(client, name)(*args, **kwargs)
            return [item async for item in found] if hasattr(found, "__anext__") else await found

    if request.param is Client:
        return call_blocking
    return lambda *args, **kwargs: asyncio.run(call_suspending(*args, **kwargs))


REFUSED = httpx.ConnectError("refused")
LOST = httpx.RemoteProtocolError("disconnected")


@pytest.mark.parametrize("failure", [refused(503, Retry_After="0"), refused(429, Retry_After="0"), REFUSED, LOST])
def test_predictions_are_asked_for_again(ask: Ask, failure: Step) -> None:
    script = Script(failure, failure, ok())
    assert ask(script, "predict", "m", ROW).values == [1.5]
    assert len({request.content for request in script.requests}) == 1
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (refused(503), UnavailableError),
        (refused(429), RateLimitedError),
        (refused(500), ServiceError),
        (refused(504), TimedOutError),
        (httpx.ReadTimeout("late"), TimedOutError),
        (refused(503, Retry_After="3600"), UnavailableError),
    ],
)
def test_what_is_not_asked_for_again(ask: Ask, failure: Step, kind: type[ForkserveError]) -> None:
    script = Script(failure)
    with pytest.raises(kind):
        ask(script, "predict", "m", ROW)


def test_retries_end(ask: Ask) -> None:
    script = Script(*[REFUSED] * 4)
    with pytest.raises(UnreachableError, match="refused"):
        ask(script, "predict", "m", ROW)
    assert len(script.requests) == 4


@pytest.mark.parametrize(
    ("name", "args", "safe"),
    [
        ("store_outcomes", {"rows": ROW, "outcomes": [1], "request_id": "r"}, True),
        ("store_outcomes", {"rows": ROW, "outcomes": [1]}, False),
        ("store_outcomes", {"rows": None, "outcomes": [1], "request_id": "r"}, True),
        ("store_records", {"rows": [{"a": 1}], "times": ["2026-01-31"]}, True),
        ("store_records", {"rows": [{"a": 1}], "ids": ["x"]}, True),
        ("store_records", {"rows": [{"a": 1}]}, False),
    ],
)
def test_what_would_be_stored_twice_is_sent_twice_only_if_it_never_arrived(
    ask: Ask, name: str, args: dict[str, Any], *, safe: bool
) -> None:
    stored = ok({"stored": 1}, 201)
    failure: Step
    for failure in (REFUSED, refused(429, Retry_After="0")):
        assert ask(Script(failure, stored), name, "x", **args).stored == 1
    for failure in (refused(503, Retry_After="0"), LOST):
        if safe:
            assert ask(Script(failure, stored), name, "x", **args).stored == 1
        else:
            with pytest.raises((UnreachableError, UnavailableError)):
                ask(Script(failure), name, "x", **args)


def test_a_job_is_submitted_again_under_the_same_idempotency_key(ask: Ask) -> None:
    script = Script(LOST, ok(JOB, 202))
    assert ask(script, "submit", "m", ROW).id == "j"
    first, second = (request.headers["idempotency-key"] for request in script.requests)
    assert first == second


def test_the_deadline_is_what_is_left(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0.0, 0.25)  # a clock that ticks when it is looked at
    monkeypatch.setattr(serving.client.calls, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    script = Script(refused(503, Retry_After="0"), ok())
    ask(script, "predict", "m", ROW, timeout=5)
    first, second = (float(request.headers["x-request-timeout"]) for request in script.requests)
    assert 0 < second < first < 5
    ask(script := Script(ok({"models": []})), "models")
    assert "x-request-timeout" not in script.requests[0].headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInputError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, TooLargeError),
        (415, InvalidInputError),
        (422, InvalidInputError),
        (302, ServiceError),
        (507, ServiceError),
    ],
)
def test_refusals_are_errors_of_their_kind(ask: Ask, status: int, kind: type[ForkserveError]) -> None:
    with pytest.raises(kind, match=rf"^{status} Title: why \(request r\)$") as caught:
        ask(Script(refused(status)), "model", "m")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.request_id) == (status, "r")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.status) == (kind, str(caught.value), status)


def test_an_answer_of_something_else_is_shown(ask: Ask) -> None:
    page = httpx.Response(502, text="<h1>Bad gateway</h1>" * 100)
    with pytest.raises(ServiceError, match=r"^502: <h1>Bad gateway") as caught:
        ask(Script(page), "health")
    assert len(str(caught.value)) < 600


def test_a_prediction_that_became_a_job_says_which(ask: Ask) -> None:
    with pytest.raises(BecameJob, match="job j") as caught:
        ask(Script(ok(JOB, 202)), "predict", "m", ROW)
    assert caught.value.job.id == "j"


def test_waiting_for_a_job_ends_with_it(ask: Ask) -> None:
    running, failed = {**JOB, "state": "running", "progress": 0.5}, {**JOB, "state": "failed", "error": "row 3"}
    assert ask(Script(ok(running), LOST, ok(running), ok(JOB)), "wait", "j").state == "done"
    with pytest.raises(JobFailedError, match="job j failed: row 3") as caught:
        ask(Script(ok(running), ok(failed)), "wait", "j")
    assert pickle.loads(pickle.dumps(caught.value)).job == caught.value.job
    with pytest.raises(TimedOutError):
        ask(Script(*[ok(running)] * 50), "wait", "j", timeout=0.05)


def test_a_stream_goes_on_after_the_last_event(ask: Ask) -> None:
    first = events('id: 7\nretry: 0\n\nid: 8\nevent: progress\ndata: {"n": 1}', ":", "id: 9\nevent: reset\ndata: ")
    script = Script(first, LOST, refused(503), events("id: 10\r\nevent: done\r\ndata: {}\r\n\r"))
    found = ask(script, "job_events", "j", after=5)
    assert [(event.kind, event.id, event.is_reset) for event in found] == [
        ("progress", "8", False),
        ("reset", "9", True),
        ("done", "10", False),
    ]
    assert found[0].data == {"n": 1}
    assert [request.headers["last-event-id"] for request in script.requests] == ["5", "9", "9", "9"]


def test_a_stream_ends_when_there_is_no_more(ask: Ask) -> None:
    assert ask(Script(httpx.Response(204)), "job_events", "j") == []
    with pytest.raises(NotFoundError):
        ask(Script(refused(404)), "entity_events", "e")


def test_a_line_separator_in_a_text_ends_no_line(ask: Ask) -> None:
    text = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)
    (event,) = ask(Script(events(f"event: done\ndata: {text}")), "job_events", "j")
    assert event.data == {"text": "a\u2028b\x85c"}


def test_streamed_predictions_that_break_off_are_asked_for_from_there(ask: Ask) -> None:
    class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"id: 0\nevent: prediction\ndata: 0.5\n\nid: 1\nevent: prediction\nda"
            raise httpx.ReadError("cut off")

        async def __aiter__(self) -> Any:
            yield b"".join([next(iter(self))])
            raise httpx.ReadError("cut off")

    script = Script(httpx.Response(200, stream=Broken()), events(*[f"event: prediction\ndata: {n}.5" for n in (1, 2)]))
    found = ask(script, "stream_predictions", "m", [[0], [1], [2]])
    assert [prediction.value for prediction in found] == [0.5, 1.5, 2.5]
    assert json.loads(script.requests[1].content)["instances"] == [[1], [2]]


def test_an_error_within_a_stream_is_raised(ask: Ask) -> None:
    problem = {"status": 504, "title": "Gateway Timeout", "detail": "late", "request_id": "r"}
    frames = ("event: prediction\ndata: 0.5", f"event: error\ndata: {json.dumps(problem)}")
    with pytest.raises(TimedOutError, match="late"):
        ask(Script(events(*frames)), "stream_predictions", "m", [[0], [1]])


def test_all_pages_are_read(ask: Ask) -> None:
    pages = [{"entities": [{"entity": name}], "next": after} for name, after in (("a", "a"), ("b", None))]
    script = Script(*map(ok, pages))
    assert [one.entity for one in ask(script, "entities", kind="house")] == ["a", "b"]
    assert [dict(request.url.params) for request in script.requests] == [
        {"kind": "house"},
        {"kind": "house", "after": "a"},
    ]


def test_names_are_quoted_in_paths(ask: Ask) -> None:
    ask(script := Script(ok()), "predict", "a/b:c?", ROW, version="1/2")
    assert script.requests[0].url.raw_path == b"/v1/models/a%2Fb%3Ac%3F/versions/1%2F2:predict"


def test_the_environment_names_service_and_key(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKSERVE_URL", "https://models.example.com/")
    monkeypatch.setenv("FORKSERVE_API_KEY", "secret")
    ask(script := Script(ok({"models": []})), "models")
    assert str(script.requests[0].url) == "https://models.example.com/v1/models"
    assert script.requests[0].headers["authorization"] == "Bearer secret"
    for wrong in ("models.example.com", "ftp://models.example.com"):
        with pytest.raises(ValueError, match="https://"):
            Client(wrong)
