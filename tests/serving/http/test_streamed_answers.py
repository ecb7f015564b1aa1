"""Predictions and explanations as server-sent events, for who accepts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.service import Service
from harness.sse import Frame, Stream
from harness.wire import ask, check_refusal, request
from tests.serving.http.test_explain import variants

pytestmark = pytest.mark.anyio


async def stream(service: Service, path: str, instances: list[Any], **headers: str) -> list[Frame]:
    """All events of an answer that is complete."""
    body = json.dumps({"instances": instances}).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with Stream(service.address, path, method="POST", body=body, headers=given) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        frames = [frame async for frame in answer]
        assert answer.complete
    return frames


@pytest.mark.parametrize("model", ["diabetes", "breast-cancer", "wine", "mortgage"])
@pytest.mark.parametrize(("verb", "kind"), [("predict", "prediction"), ("explain", "explanation")])
async def test_each_instance_is_an_event_and_done_is_the_last(
    service: Service, client: httpx.Client, model: str, verb: str, kind: str
) -> None:
    instances = variants(client, model, 60)
    path = f"/v1/models/{model}:{verb}"
    *events, done = await stream(service, path, instances)
    assert [(event["event"], event["id"]) for event in events] == [(kind, str(number)) for number in range(60)]
    whole = ask(service, request(path, json.dumps({"instances": instances}).encode())).json()
    assert [json.loads(event["data"]) for event in events] == whole[f"{kind}s"]
    assert done["event"] == "done"
    assert json.loads(done["data"]) == {"model": model, "version": "1", "instances": 60}


async def test_events_come_before_all_is_done_and_the_deadline_is_an_event(waiting: Service) -> None:
    first, error = await stream(waiting, "/v1/models/sleeper:predict", [[0.0], [3.0]], x_request_timeout="1.5")
    assert (first["event"], first["id"]) == ("prediction", "0")
    assert error["event"] == "error"
    problem = json.loads(error["data"])
    assert (problem["status"], problem["detail"]) == (504, "the request took longer than 1.5 s")
    assert '"level":"error"' not in waiting.log()


async def test_what_was_streamed_is_kept(waiting: Service) -> None:
    path, instances = "/v1/models/sleeper:predict", [[0.001], [0.002], [0.001]]
    await stream(waiting, path, instances)
    answer = ask(waiting, request(path, json.dumps({"instances": instances}).encode()))
    assert answer.headers["x-cache"] == "hit-memory"


@pytest.fixture(scope="module")
def waiting(sleeper: Path) -> Iterator[Service]:
    """One worker with a model that takes as long as it is told."""
    with Service({"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1", "MAX_REQUESTS": "0", "ROLES": "web"}) as service:
        yield service


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/models/nobody:predict", b'{"instances": [[1]]}', 404),
        ("/v1/models/diabetes:predict", b'{"instances": [[1]]}', 422),
        ("/v1/models/diabetes:explain", b'{"instances": []', 400),
    ],
)
async def test_what_is_wrong_from_the_beginning_is_refused_as_ever(
    service: Service, path: str, body: bytes, status: int
) -> None:
    check_refusal(ask(service, request(path, body, accept="text/event-stream")), status)
