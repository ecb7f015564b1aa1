"""Outcomes over HTTP: labels in all forms, outcomes of logged predictions by request id, and their quality."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from harness.apps import client_of, recorded
from registry.outputs import Layout
from registry.quality import Scorer
from registry.store.add import add_version
from serving.app import Application, build, build_alerts
from serving.entities.outcomes import judge
from serving.settings import Settings
from tests.serving.entities.conftest import outcome

pytestmark = pytest.mark.anyio

FLOWERS, KINDS = load_iris(return_X_y=True)
SAMPLE = pd.DataFrame(FLOWERS, columns=list("abcd"))
ROWS = SAMPLE.iloc[[0, 60, 120]].to_dict("records")
SCOPES = {"asker": "predict,write", "stranger": "predict,write", "reader": "read,write", "boss": "admin"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    texts = pd.Series(KINDS > 0).map({False: "0", True: "1"})
    both = pd.DataFrame({"kind": KINDS, "large": (FLOWERS[:, 0] > 6).astype(int)})
    for name, estimator in {
        "binary": LogisticRegression(max_iter=500).fit(SAMPLE, texts),
        "kinds": LogisticRegression(max_iter=500).fit(SAMPLE, KINDS),
        "number": LinearRegression().fit(SAMPLE, FLOWERS[:, 0] * 2.0),
        "both": DecisionTreeClassifier(max_depth=2).fit(SAMPLE, both.to_numpy()),
    }.items():
        add_version(root, name, estimator, SAMPLE)
    return root


def secret_of(name: str) -> str:
    return f"the-secret-of-the-key-{name}"


def as_key(name: str) -> dict[str, str]:
    return {"X-API-Key": secret_of(name)}


def make_app(root: Path, data: Path, **options: Any) -> Application:
    keys = " ".join(
        f"{name}:{hashlib.sha256(secret_of(name).encode()).hexdigest()}:{scopes}" for name, scopes in SCOPES.items()
    )
    settings = Settings(model_dir=root, data_dir=data, api_keys=keys, **options)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def shared_app(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    app = make_app(root, tmp_path_factory.mktemp("data"), log_predictions="all")
    app.service.shared.book.enter_alone()
    return app


async def close(app: Application) -> None:
    service = app.service
    await service.outcome_writer.close()
    await service.quality.close()
    for part in (service.shared.predictions, service.shared.entities, service.shared.events, service.shared.jobs):
        await part.close()


@pytest.fixture
async def client(shared_app: Application) -> AsyncIterator[httpx.AsyncClient]:
    async with recorded(shared_app) as client:
        yield client
    await close(shared_app)


async def predict(
    client: httpx.AsyncClient, request_id: str, model: str = "kinds", key: str = "asker", **body: Any
) -> Any:
    answer = await client.post(
        f"/v1/models/{model}:predict",
        json={"instances": ROWS} | body,
        headers=as_key(key) | {"X-Request-Id": request_id},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


async def send(client: httpx.AsyncClient, model: str, outcomes: Any, key: str = "asker", **more: Any) -> httpx.Response:
    headers = as_key(key) | more.pop("headers", {})
    return await client.post(f"/v1/models/{model}/outcomes", json={"outcomes": outcomes} | more, headers=headers)


def of(request_id: str, outcome: Any, instance: int | None = None) -> dict[str, Any]:
    return {"request_id": request_id, "outcome": outcome} | ({} if instance is None else {"instance": instance})


async def quality(client: httpx.AsyncClient, model: str) -> dict[str, Any]:
    found = (await client.get(f"/v1/models/{model}/quality", headers=as_key("reader"))).json()
    return found["versions"][0] if found["versions"] else {"outcomes": 0}


async def test_labels_are_understood_in_all_forms_of_the_same_number(
    client: httpx.AsyncClient, shared_app: Application
) -> None:
    forms = [1, "1", 1.0, "1.0", "1e0", 0, 0.0, "0.0"]
    answer = await send(client, "binary", forms, instances=[ROWS[1]] * len(forms))
    assert answer.json() == {"model": "binary", "version": "1", "stored": len(forms)}
    stored = await shared_app.service.shared.entities.outcomes("binary", 100)
    assert [one.outcome for one in stored[::-1]] == ["1"] * 5 + ["0"] * 3
    assert stored[0].probabilities is not None
    assert (await quality(client, "binary"))["accuracy"] == 5 / 8
    refused = await send(client, "kinds", [True], instances=[ROWS[0]])
    assert refused.status_code == 422


async def test_outcomes_of_logged_predictions_need_no_rows(client: httpx.AsyncClient, shared_app: Application) -> None:
    answers = await predict(client, "joined")
    before = (await quality(client, "kinds"))["outcomes"]
    answer = await send(client, "kinds", [of("joined", 0, 0), of("joined", "1", 1), of("joined", 0, 2)])
    assert (answer.status_code, answer.json()) == (201, {"model": "kinds", "version": "1", "stored": 3})
    stored = (await shared_app.service.shared.entities.outcomes("kinds", 3))[::-1]
    logged = (await client.get("/v1/predictions/joined", headers=as_key("asker"))).json()["predictions"]
    assert [dict(one.instance) for one in stored] == ROWS
    assert [one.prediction for one in stored] == [one["label"] for one in answers]
    assert [one.probabilities for one in stored] == [one["probabilities"] for one in answers]
    assert [one.time.isoformat() for one in stored] == [row["time"].replace("Z", "+00:00") for row in logged]
    again = await send(client, "kinds", [of("joined", 0, 0)])
    assert (again.status_code, again.json()["stored"], again.json()["present"]) == (200, 0, 1)
    with_rows = await send(client, "kinds", [2, 2, 2], instances=ROWS, request_id="joined")
    assert with_rows.json()["present"] == 3
    assert (await quality(client, "kinds"))["outcomes"] == before + 3


async def test_what_is_not_logged_is_named_and_the_rest_is_stored(client: httpx.AsyncClient) -> None:
    await predict(client, "known", instances=ROWS[:1])
    await predict(client, "of-other", model="number", instances=ROWS[:1])
    sent = [of("known", 0), of("unknown", 1), of("known", 1, 5), of("of-other", 1)]
    answer = await send(client, "kinds", sent)
    assert answer.status_code == 201
    assert answer.json()["stored"] == 1
    missing = [{"request_id": "unknown"}, {"request_id": "known", "instance": 5}, {"request_id": "of-other"}]
    assert answer.json()["missing"] == missing
    nothing = await send(client, "kinds", [of("unknown", 1)], headers={"Prefer": "respond-async"})
    assert (nothing.status_code, nothing.json()["stored"]) == (200, 0)


async def test_a_key_joins_its_own_predictions_and_operators_all(client: httpx.AsyncClient) -> None:
    await predict(client, "private", instances=ROWS[:1])
    for key, stored in (("stranger", 0), ("asker", 1), ("boss", 0), ("reader", 0)):
        answer = (await send(client, "kinds", [of("private", 0)], key)).json()
        assert (answer["stored"], "missing" in answer) == (stored, key == "stranger")  # operators find it present


def test_the_prediction_beside_an_interval_is_the_number() -> None:
    scorer = Scorer("regression", Layout(("value",)))
    judged = judge(outcome(1, outcome=3.0), {"prediction": 2.0, "interval": [1.0, 3.0]}, scorer)
    assert judged.prediction == 2.0
    assert judged.probabilities is None
    assert judged.sums["absolute_error/"] == 1


async def test_numbers_and_several_targets_are_joined(client: httpx.AsyncClient) -> None:
    (number, *_), (first, *_) = await predict(client, "numbers", "number"), await predict(client, "several", "both")
    assert (await send(client, "number", [of("numbers", number + 1.5, 0)])).json()["stored"] == 1
    assert (await quality(client, "number"))["mean_absolute_error"] == pytest.approx(1.5)
    truth = {name: one["label"] for name, one in first["prediction"].items()}
    assert (await send(client, "both", [of("several", truth, 0)])).json()["stored"] == 1
    found = await quality(client, "both")
    assert (found["outcomes"], found["accuracy"]) == (1, 1.0)
    assert found["log_loss"] >= 0


async def test_outcomes_by_request_may_be_stored_later(client: httpx.AsyncClient, shared_app: Application) -> None:
    await predict(client, "later", instances=ROWS[:1])
    answer = await send(client, "kinds", [of("later", 0)], headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.json()) == (202, {"model": "kinds", "version": "1", "accepted": 1})
    await shared_app.service.outcome_writer.close()
    assert (await send(client, "kinds", [of("later", 0)])).json()["present"] == 1


@pytest.mark.parametrize(
    ("outcomes", "more", "said"),
    [
        ([], {}, "request_id"),
        ([1], {}, r"outcomes\[0\] is not of this form"),
        ([{"request_id": "a"}], {}, r"outcomes\[0\] is not of this form"),
        ([{"request_id": "rows", "outcome": 1, "instance": "0"}], {}, r"outcomes\[0\] is not of this form"),
        ([of("rows", 1)], {"version": "1"}, "outcomes and time alone"),
        ([of("rows", 1)], {"request_id": "rows"}, "outcomes and time alone"),
        ([of("rows", 1)], {}, "that request has 3 rows; say which as instance"),
        ([of("rows", 1, 0), of("rows", "none", 1)], {}, "must be one of the model's classes"),
        ([of("rows", 1, 0)], {"time": "then"}, "ISO 8601"),
    ],
)
async def test_what_cannot_be_joined_is_refused(
    client: httpx.AsyncClient, outcomes: Any, more: dict[str, Any], said: str
) -> None:
    await predict(client, "rows")
    answer = await send(client, "kinds", outcomes, **more)
    assert answer.status_code == 422, answer.text
    assert re.search(said, answer.json()["detail"] + str(answer.json())), answer.text


async def test_more_outcomes_than_a_request_may_have_are_refused(client: httpx.AsyncClient) -> None:
    assert (await send(client, "kinds", [of(f"r{n}", 1) for n in range(1001)])).status_code == 413


async def test_without_a_log_the_setting_is_named(root: Path, tmp_path: Path) -> None:
    app = make_app(root, tmp_path)
    async with client_of(app) as client:
        answer = await send(client, "kinds", [of("any", 1)])
    assert answer.status_code == 422
    assert "LOG_PREDICTIONS" in answer.text
    await close(app)


async def test_redacted_columns_are_missing_in_the_instance_and_counted(root: Path, tmp_path: Path) -> None:
    app = make_app(root, tmp_path, log_predictions="all", log_predictions_redact=("a", "b"))
    app.service.shared.book.enter_alone()
    assert app.service.shared.recorder is not None
    stop = app.service.shared.recorder.start()
    async with client_of(app) as client:
        await predict(client, "hidden", instances=ROWS[:1])
        answer = await send(client, "kinds", [of("hidden", 0)])
    assert answer.json() == {"model": "kinds", "version": "1", "incomplete": 1, "stored": 1}
    (stored,) = await app.service.shared.entities.outcomes("kinds", 5)
    assert dict(stored.instance) == {name: ROWS[0][name] for name in "cd"}
    await stop()
    await close(app)
