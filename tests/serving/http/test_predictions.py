"""The log of predictions over HTTP: who sees what, explanations by id, and deletion, in an app of this process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from harness.apps import client_of, recorded
from registry.store.add import add_version
from serving.app import Application, build, build_alerts
from serving.settings import Settings

pytestmark = pytest.mark.anyio

SCOPES = {"asker": "predict,write", "stranger": "predict,write", "reader": "read", "boss": "admin"}
FLOWER = {"a": 5.1, "b": 3.5, "c": 1.4, "d": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    flowers, kinds = load_iris(return_X_y=True)
    sample = pd.DataFrame(flowers, columns=list("abcd"))
    for model in ("iris", "other"):
        add_version(root, model, LogisticRegression(max_iter=500).fit(sample, kinds), sample)
    return root


def secret_of(name: str) -> str:
    return f"the-secret-of-the-key-{name}"


def make_app(root: Path, data: Path, **options: Any) -> Application:
    digests = {name: hashlib.sha256(secret_of(name).encode()).hexdigest() for name in (*SCOPES, "narrow")}
    keys = " ".join(f"{name}:{digests[name]}:{scopes}" for name, scopes in SCOPES.items())
    keys += f" narrow:{digests['narrow']}:read::other"
    settings = Settings(model_dir=root, data_dir=data, log_predictions="all", api_keys=keys, **options)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def shared_app(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    app = make_app(root, tmp_path_factory.mktemp("data"))
    app.service.shared.book.enter_alone()
    return app


@pytest.fixture
async def client(shared_app: Application) -> AsyncIterator[httpx.AsyncClient]:
    async with recorded(shared_app) as client:
        yield client
    shared = shared_app.service.shared
    for part in (shared.predictions, shared.entities, shared.events, shared.jobs):
        await part.close()


def as_key(name: str) -> dict[str, str]:
    return {"X-API-Key": secret_of(name)}


async def predict(client: httpx.AsyncClient, request_id: str, model: str = "iris", key: str = "asker") -> Any:
    headers = as_key(key) | {"X-Request-Id": request_id}
    body = {"instances": [FLOWER, FLOWER | {"a": 6.0}]}
    answer = await client.post(f"/v1/models/{model}:predict", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


async def test_a_prediction_is_found_by_the_id_of_its_request(client: httpx.AsyncClient) -> None:
    answers = await predict(client, "mine")
    found = await client.get("/v1/predictions/mine", headers=as_key("reader"))
    assert found.json()["request_id"] == "mine"
    rows = found.json()["predictions"]
    assert [row["row"] for row in rows] == [FLOWER, FLOWER | {"a": 6.0}]
    assert [row["answer"] for row in rows] == answers
    assert {(row["key"], row["model"], row["version"], row["verb"]) for row in rows} == {
        ("asker", "iris", "1", "predict")
    }


async def test_a_key_sees_what_it_has_asked_and_operators_see_all(client: httpx.AsyncClient) -> None:
    await predict(client, "of-asker")
    await predict(client, "of-stranger", key="stranger")
    for key, request_id, status in (
        ("asker", "of-asker", 200),
        ("asker", "of-stranger", 404),
        ("stranger", "of-asker", 404),
        ("reader", "of-asker", 200),
        ("boss", "of-stranger", 200),
        ("narrow", "of-asker", 404),
        ("boss", "of-nobody", 404),
    ):
        for method, path in (("GET", ""), ("POST", ":explain")):
            answer = await client.request(method, f"/v1/predictions/{request_id}{path}", headers=as_key(key))
            assert answer.status_code == status, (method, key, request_id)


async def test_two_keys_that_choose_one_id_do_not_see_each_others_rows(client: httpx.AsyncClient) -> None:
    await predict(client, "same")
    await predict(client, "same", key="stranger")
    for key, count in (("asker", 2), ("stranger", 2), ("reader", 4)):
        rows = (await client.get("/v1/predictions/same", headers=as_key(key))).json()["predictions"]
        assert len(rows) == count
    gone = await client.delete("/v1/predictions/same", headers=as_key("asker"))
    assert gone.json() == {"request_id": "same", "deleted": {"predictions": 2}}
    rows = (await client.get("/v1/predictions/same", headers=as_key("reader"))).json()["predictions"]
    assert {row["key"] for row in rows} == {"stranger"}
    assert (await client.delete("/v1/predictions/same", headers=as_key("asker"))).status_code == 404
    assert (await client.delete("/v1/predictions/same", headers=as_key("reader"))).status_code == 403
    assert (await client.delete("/v1/predictions/same", headers=as_key("boss"))).json()["deleted"]["predictions"] == 2


async def test_a_logged_prediction_is_explained_as_its_row_is(client: httpx.AsyncClient) -> None:
    await predict(client, "why")
    by_id = await client.post("/v1/predictions/why:explain", headers=as_key("asker"))
    body = {"instances": [FLOWER, FLOWER | {"a": 6.0}]}
    sent = await client.post("/v1/models/iris:explain", json=body, headers=as_key("asker"))
    explained = by_id.json()["explanations"]
    assert [one["explanation"] for one in explained] == sent.json()["explanations"]
    assert [(one["place"], one["model"], one["version"]) for one in explained] == [(0, "iris", "1"), (1, "iris", "1")]


async def test_a_list_goes_back_in_time_page_by_page(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await predict(client, f"list-{number}", model="other" if number == 1 else "iris")
    await client.get("/v1/predictions/list-2", headers=as_key("reader"))

    async def listed(key: str = "reader", **query: Any) -> tuple[list[str], str | None]:
        answer = await client.get("/v1/predictions", params=query, headers=as_key(key))
        assert answer.status_code == 200, answer.text
        return [row["request_id"] for row in answer.json()["predictions"]], answer.json()["next"]

    first, following = await listed(limit=3)
    assert first == ["list-2", "list-2", "list-1"]
    assert await listed(limit=4, after=following) == (["list-1", "list-0", "list-0"], None)
    assert await listed(model="other") == (["list-1", "list-1"], None)
    assert await listed(key="narrow") == (["list-1", "list-1"], None)
    assert await listed(since="2100-01-01") == ([], None)
    assert len((await listed(until="2100-01-01", version="1"))[0]) == 6
    refused = await client.get("/v1/predictions", params={"model": "iris"}, headers=as_key("narrow"))
    assert refused.status_code == 403
    assert (await client.get("/v1/predictions", params={"since": "soon"}, headers=as_key("reader"))).status_code == 422
    assert (await client.get("/v1/predictions", headers=as_key("asker"))).status_code == 403


async def test_each_path_says_which_methods_it_takes(client: httpx.AsyncClient) -> None:
    for path, methods in (("x", "DELETE, GET, HEAD, OPTIONS"), ("x:explain", "OPTIONS, POST")):
        answer = await client.options(f"/v1/predictions/{path}", headers=as_key("boss"))
        assert (answer.status_code, answer.headers["allow"]) == (204, methods)


def test_what_is_redacted_cannot_be_explained_and_says_so(root: Path, tmp_path: Path) -> None:
    app = make_app(root, tmp_path, log_predictions_redact=("b",))
    app.service.shared.book.enter_alone()

    async def ask() -> httpx.Response:
        shared = app.service.shared
        assert shared.recorder is not None
        stop = shared.recorder.start()
        async with client_of(app) as client:
            await predict(client, "hidden")
            answer = await client.post("/v1/predictions/hidden:explain", headers=as_key("asker"))
        await stop()
        await shared.predictions.close()
        return answer

    answer = asyncio.run(ask())
    assert answer.status_code == 422
    assert "b is not logged (LOG_PREDICTIONS_REDACT)" in answer.json()["detail"]
