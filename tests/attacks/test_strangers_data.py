"""Records and outcomes that strangers send: they neither delete nor displace those of others."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from harness.apps import client_of
from registry.rows.infer_schema import FeatureOptions
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.errors import StoreFull
from serving.settings import Settings

NOW = datetime.now(UTC)
TOO_LATE = ["9999-12-31", "9999-12-31T23:59:59.999+14:00", (NOW + timedelta(hours=26)).isoformat()]
SECRETS = {name: f"the-secret-of-the-key-{name}" for name in ("good", "bad", "boss")}
KEPT = 20
KEPT_IN_ALL = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for entities of no kind, and one for houses."""
    root = tmp_path_factory.mktemp("entities") / "models"
    for name, kind in (("line", ""), ("price", "house")):
        sample = pd.DataFrame({"x": np.linspace(0.0, 1.0, 20)})
        trained = Trained(
            estimator=LinearRegression().fit(sample, sample["x"]), sample=sample, features=FeatureOptions()
        )
        add_trained(root, name, trained, entities=kind or True)
    return root


@pytest.fixture
def app(models: Path, tmp_path: Path) -> Application:
    keys = " ".join(
        f"{name}:{hashlib.sha256(secret.encode()).hexdigest()}:{'admin' if name == 'boss' else 'write,read,predict'}"
        for name, secret in SECRETS.items()
    )
    settings = Settings(
        model_dir=models,
        data_dir=tmp_path,
        api_keys=keys,
        max_records_per_entity=KEPT,
        max_records=KEPT_IN_ALL,
        max_outcomes_per_model=KEPT,
    )
    return build(settings, build_alerts(settings))


def ask(app: Application, method: str, path: str, key: str = "good", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        headers = {"X-API-Key": SECRETS[key]}
        try:
            async with client_of(app) as client:
                return await client.request(method, path, headers=headers, **options)
        finally:
            await app.service.shared.entities.close()
            await app.service.shared.events.close()

    return asyncio.run(send())


def records(*numbers: int, **more: Any) -> dict[str, Any]:
    return {"records": [{"values": {"x": 0.5}, "id": str(n), "time": time_of(n)} | more for n in numbers]}


def time_of(number: int) -> str:
    return (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=number)).isoformat()


def outcomes(*numbers: int, **more: Any) -> dict[str, Any]:
    return {"instances": [{"x": 0.5}] * len(numbers), "outcomes": list(numbers)} | more


def ids(app: Application, entity: str) -> list[str]:
    answer = ask(app, "GET", f"/v1/entities/{entity}/records").json()
    return [record["id"] for record in answer.get("records", [])]


@pytest.mark.parametrize("time", TOO_LATE, ids=["the last day", "the last moment", "tomorrow"])
def test_records_of_the_future_are_refused_and_delete_nothing(app: Application, time: str) -> None:
    assert ask(app, "POST", "/v1/entities/e/records", json=records(1, 2)).json()["stored"] == 2
    many = records(*range(100, 1100))
    many["records"][999]["time"] = time
    answer = ask(app, "POST", "/v1/entities/e/records", json=many)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "record 999: a time may be at most a day ahead; nothing is stored"
    assert ask(app, "POST", "/v1/entities/e/records", json={"values": {"x": 1}, "time": time}).status_code == 422
    assert ids(app, "e") == ["2", "1"]


@pytest.mark.parametrize("time", TOO_LATE, ids=["the last day", "the last moment", "tomorrow"])
def test_outcomes_of_the_future_are_refused(app: Application, time: str) -> None:
    answer = ask(app, "POST", "/v1/models/line/outcomes", json=outcomes(1, time=time))
    assert (answer.status_code, answer.json()["detail"]) == (422, "a time may be at most a day ahead")


def test_one_request_with_another_key_does_not_delete_the_records_of_an_entity(app: Application) -> None:
    ask(app, "POST", "/v1/entities/e/records", json=records(*range(KEPT)))
    soon = (NOW + timedelta(hours=20)).isoformat()
    answer = ask(app, "POST", "/v1/entities/e/records", "bad", json=records(*range(100, 1100), time=soon)).json()
    assert (answer["stored"], answer["dropped"], "present" in answer) == (KEPT // 2, 1000 - KEPT // 2, False)
    assert [one for one in ids(app, "e") if int(one) < 100] == [str(n) for n in range(KEPT - 1, KEPT // 2 - 1, -1)]


def test_a_hundred_requests_with_another_key_do_not_replace_all_outcomes(app: Application) -> None:
    answer = ask(app, "POST", "/v1/models/line/outcomes", json=outcomes(*range(KEPT), request_id="mine")).json()
    assert answer == {"model": "line", "version": "1", "stored": KEPT}
    for _ in range(100):
        ask(app, "POST", "/v1/models/line/outcomes", "bad", json=outcomes(*[1000] * KEPT))
    found = asyncio.run(_outcomes(app))
    assert sum(one.outcome < KEPT for one in found) == KEPT // 2


def test_a_request_id_belongs_to_the_key_that_sent_it(app: Application) -> None:
    for key in ("bad", "good"):
        for stored in (1, 0):
            body = outcomes(7, request_id="a-request")
            assert ask(app, "POST", "/v1/models/line/outcomes", key, json=body).json()["stored"] == stored


def test_a_records_id_belongs_to_the_key_that_sent_it(app: Application) -> None:
    """Nobody learns which ids, or which values, another key has stored, nor keeps it from storing them."""
    for given in ({}, {"id": "order-1"}):
        body = {"values": {"x": 0.5}, "time": time_of(1)} | given
        for key in ("bad", "good"):
            first, again = (ask(app, "POST", "/v1/entities/e/records", key, json=body).json() for _ in range(2))
            assert (first["stored"], again["stored"], again["present"]) == (1, 0, 1)
            assert first["ids"] == again["ids"]
    assert ids(app, "e").count("order-1") == 2
    answer = ask(app, "GET", "/v1/entities/e/predictions").json()
    assert [record["id"] for record in answer["records"]].count("order-1") == 2
    seen: list[Any] = []
    after: str | None = ""
    while after is not None:
        page = ask(app, "GET", f"/v1/entities/e/records?limit=1&after={after}").json()
        seen += page["records"]
        after = page["next"]
    assert len(seen) == 4


async def _outcomes(app: Application) -> Any:
    try:
        return await app.service.shared.entities.outcomes("line", 10_000)
    finally:
        await app.service.shared.entities.close()


def test_invented_entities_push_out_nobody_and_leave_room(app: Application) -> None:
    ask(app, "POST", "/v1/entities/mine/records", json=records(1, 2, 3))
    assert "records" not in ask(app, "GET", "/health").json()["reasons"]
    statuses = [
        ask(app, "POST", f"/v1/entities/invented-{number}/records", "bad", json=records(1)).status_code
        for number in range(KEPT_IN_ALL)
    ]
    assert statuses == [201] * (KEPT_IN_ALL // 2) + [507] * (KEPT_IN_ALL // 2)
    assert asyncio.run(app.service.shared.entities.risk()) == StoreFull.REASON
    assert ids(app, "mine") == ["3", "2", "1"]
    assert ask(app, "POST", "/v1/entities/another/records", json=records(1)).status_code == 201


def test_a_key_deletes_what_it_has_stored_and_the_admin_deletes_all(app: Application) -> None:
    ask(app, "POST", "/v1/entities/e/records", json=records(1, 2))
    for path in ("/v1/entities/e", "/v1/entities/e/records"):
        refused = ask(app, "DELETE", path, "bad")
        assert (refused.status_code, "scope admin" in refused.json()["detail"]) == (403, True)
    assert ask(app, "DELETE", f"/v1/entities/e/records?before={NOW.date()}", "bad").json()["deleted"] == {"records": 0}
    ask(app, "POST", "/v1/entities/e/records", "bad", json=records(3))
    deleted = ask(app, "DELETE", "/v1/entities/e", "bad").json()["deleted"]
    assert (deleted["records"], deleted["outcomes"], deleted["events"]) == (1, 0, 0)
    assert ids(app, "e") == ["2", "1"]
    ask(app, "POST", "/v1/models/line/outcomes", json=outcomes(1, entity="e"))
    deleted = ask(app, "DELETE", "/v1/entities/e", "boss").json()["deleted"]
    assert (deleted["records"], deleted["outcomes"]) == (2, 1)
    assert ask(app, "DELETE", "/v1/entities/e", "boss").status_code == 404
    assert ask(app, "GET", "/v1/entities/e/records").status_code == 404


def test_records_before_a_time_are_deleted(app: Application) -> None:
    ask(app, "POST", "/v1/entities/e/records", json=records(1, 2, 3))
    answer = ask(app, "DELETE", "/v1/entities/e/records", params={"before": time_of(3)})
    assert answer.json() == {"entity": "e", "deleted": {"records": 2}}
    assert ids(app, "e") == ["3"]
    assert ask(app, "DELETE", "/v1/entities/e/records", params={"before": "soon"}).status_code == 422


def test_entities_and_records_are_listed_page_by_page(app: Application) -> None:
    for entity in ("a", "b", "c"):
        ask(app, "POST", f"/v1/entities/{entity}/records", json=records(1, 2, 3))
    first = ask(app, "GET", "/v1/entities?limit=2").json()
    assert [(one["entity"], one["kind"], one["records"]) for one in first["entities"]] == [("a", "", 3), ("b", "", 3)]
    second = ask(app, "GET", f"/v1/entities?limit=2&after={first['next']}").json()
    assert ([one["entity"] for one in second["entities"]], second["next"]) == (["c"], None)
    page = ask(app, "GET", "/v1/entities/a/records?limit=2").json()
    assert [record["id"] for record in page["records"]] == ["3", "2"]
    rest = ask(app, "GET", f"/v1/entities/a/records?limit=2&after={page['next']}").json()
    assert rest == {
        "entity": "a",
        "kind": "",
        "records": [{"id": "1", "time": "2024-01-01T00:01:00Z", "values": {"x": 0.5}}],
        "next": None,
    }
    for query in ("limit=0", "limit=x", "after=unknown"):
        assert ask(app, "GET", f"/v1/entities/a/records?{query}").status_code == 422


def test_only_models_of_its_kind_predict_for_an_entity(app: Application) -> None:
    assert ask(app, "POST", "/v1/entities/home/records?kind=house", json=records(1)).status_code == 201
    assert ask(app, "POST", "/v1/entities/home/records", json=records(2)).status_code == 201
    ask(app, "POST", "/v1/entities/plain/records", json=records(1))
    for entity, model, other in (("home", "price", "line"), ("plain", "line", "price")):
        path = f"/v1/entities/{entity}/predictions"
        answer = ask(app, "GET", path).json()
        assert [one["model"] for one in answer["models"]] == [model]
        assert ask(app, "GET", f"{path}?models={model}").status_code == 200
        refused = ask(app, "GET", f"{path}?models={model},{other}")
        assert (refused.status_code, f"{other} is not bound" in refused.json()["detail"]) == (422, True)
    assert ask(app, "GET", "/v1/entities/home/predictions?kind=house").status_code == 200
    assert ask(app, "GET", "/v1/entities/home/predictions?kind=share").status_code == 404
    conflict = ask(app, "POST", "/v1/entities/home/records?kind=share", json=records(3))
    assert (conflict.status_code, conflict.json()["detail"]) == (422, "home is an entity of kind house")
    for kind in ("", "House", "a b", "x" * 65):
        assert ask(app, "POST", "/v1/entities/e/records", params={"kind": kind}, json=records(1)).status_code == 422
    listed = ask(app, "GET", "/v1/entities?kind=house").json()["entities"]
    assert [one["entity"] for one in listed] == ["home"]
    assert ask(app, "GET", "/v1/models/price").json()["kind"] == "house"


def test_a_text_that_the_store_could_not_hold_is_refused(app: Application) -> None:
    body = outcomes(1) | {"instances": [{"x": 0.5, "note": "a\0b"}]}
    assert ask(app, "POST", "/v1/models/line/outcomes", json=body).status_code == 422
