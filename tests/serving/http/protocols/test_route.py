"""A protocol beside our own goes the way of `:predict`: its cache, limits, keys, counters and refusals."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

import serving.app
from harness.apps import client_of
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.http.protocols.route import Protocol, ProtocolAnswer, Question, Received
from serving.predict.pieces import Turns
from serving.settings import Settings

KEYS = {"both": "", "narrow": "other"}


class Lines(Protocol):
    """A row a line; the answer is a line for each."""

    path = re.compile(r"/v1/jobs/(?P<model>line)/lines|/v1/jobs/lines")

    def find(self, registry: Registry, names: Mapping[str, str | None]) -> LoadedModel:
        return registry.get(names["model"] or "line")

    async def read(self, model: LoadedModel, request: Received) -> Question:
        return Question(model.schema.rows([[float(line)] for line in request.body.splitlines()]))

    async def write(self, _model: LoadedModel, question: Question, _turns: Turns) -> ProtocolAnswer:
        return ProtocolAnswer(b"text/plain", b"\n".join(question.answers["predict"]), [(b"x-lines", b"yes")])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    root = tmp_path_factory.mktemp("line") / "models"
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 20)})
    add_trained(root, "line", Trained(estimator=LinearRegression().fit(sample, sample["value"] * 3), sample=sample))
    entries = " ".join(
        f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:predict::{models}" for name, models in KEYS.items()
    )
    settings = Settings(
        model_dir=root, data_dir=root.parent / "data", api_keys=entries, max_instances=3, max_body_bytes=100
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.app, "make_protocols", lambda *_: [Lines()])
        yield build(settings, build_alerts(settings))


def ask(app: Application, *requests: tuple[str, str, bytes], key: str = "both") -> list[httpx.Response]:
    """The answers to requests (method, path, body), one after the other."""

    async def all_of_them() -> list[httpx.Response]:
        async with AsyncExitStack() as closing:
            await app.service.open(closing)
            client = await closing.enter_async_context(client_of(app))
            headers = {"x-api-key": key, "content-type": "application/json"}
            return [
                await client.request(method, path, content=body, headers=headers) for method, path, body in requests
            ]

    return asyncio.run(all_of_them())


def test_rows_of_two_protocols_share_the_cache_and_get_equal_answers(app: Application) -> None:
    ours, theirs = ask(
        app,
        ("POST", "/v1/models/line:predict", b'{"instances": [[0.5]]}'),
        ("POST", "/v1/jobs/line/lines", b"0.5\n"),
    )
    assert [float(line) for line in theirs.text.split()] == ours.json()["predictions"]
    assert (ours.headers["x-cache"], theirs.headers["x-cache"]) == ("miss", "hit-memory")
    assert theirs.headers["content-type"] == "text/plain"
    assert theirs.headers["x-lines"] == "yes"
    assert "total;dur=" in theirs.headers["server-timing"]


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("GET", b"", 405),
        ("POST", b"0.5\n" * 4, 413),
        ("POST", b"0.5\n" * 40, 413),
        ("POST", b"", 422),
        ("POST", b"inf\n", 422),
        ("OPTIONS", b"", 204),
    ],
)
def test_limits_are_those_of_predict(app: Application, method: str, body: bytes, status: int) -> None:
    (answer,) = ask(app, (method, "/v1/jobs/line/lines", body))
    assert answer.status_code == status


def test_key_for_another_model_is_refused_also_where_the_path_names_none(app: Application) -> None:
    (allowed,) = ask(app, ("POST", "/v1/jobs/lines", b"0.5\n"))
    (refused,) = ask(app, ("POST", "/v1/jobs/lines", b"0.5\n"), key="narrow")
    assert (allowed.status_code, refused.status_code) == (200, 403)


def test_refusals_count_for_the_model(app: Application) -> None:
    counters = app.service.metrics.model("line", "predict")
    before = sum(counters._sheet.cells)
    ask(app, ("POST", "/v1/jobs/line/lines", b"inf\n"))
    assert sum(counters._sheet.cells) == before + 1
