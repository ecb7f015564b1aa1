"""What is logged of real answers, in an app of this process: what was sent and answered, and nothing redacted."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from harness.apps import client_of
from registry.store.add import add_version
from serving.app import Application, build, build_alerts, renew
from serving.errors import InvalidRequest, StoreUnavailable
from serving.monitoring.predictions.log import PredictionLogger
from serving.monitoring.predictions.policy import LogPolicy
from serving.monitoring.predictions.recorder import Recorder
from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.monitoring.predictions.store import EVERY_ROW, LoggedPrediction
from serving.predict.observer import Answered
from serving.settings import Settings
from serving.shared.metrics import LOGGED
from serving.shared.ring import Ring
from tests.serving.monitoring.predictions.conftest import logged

TICKETS = pd.DataFrame({"note": ["broken", "all is well", "it broke", "thanks"] * 5, "city": ["Bern", "Rome"] * 10})
MODELS = ("iris", "gaps")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of numbers, a regressor that takes missing values, and one that takes texts and any city."""
    root = tmp_path_factory.mktemp("models")
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    add_version(root, "iris", LogisticRegression(max_iter=500).fit(flowers, kinds), flowers)
    gaps = flowers.mask(flowers > 6).drop(columns="petal width (cm)")
    add_version(root, "gaps", HistGradientBoostingRegressor(max_iter=5).fit(gaps, kinds), gaps)
    columns = make_column_transformer((TfidfVectorizer(), "note"), (OneHotEncoder(handle_unknown="ignore"), ["city"]))
    estimator = make_pipeline(columns, LogisticRegression()).fit(TICKETS, ["yes", "no"] * 10)
    add_version(root, "tickets", estimator, TICKETS)
    return root


def build_app(root: Path, data: Path, **options: Any) -> Application:
    settings = Settings(model_dir=root, data_dir=data, **{"log_predictions": "all"} | options)
    app = build(settings, build_alerts(settings))
    app.service.shared.book.enter_alone()
    return app


def recorder_of(app: Application) -> Recorder:
    recorder = app.service.shared.recorder
    assert recorder is not None
    return recorder


def ask(app: Application, *requests: tuple[str, Any], request_id: str = "") -> tuple[list[Any], list[LoggedPrediction]]:
    """What the app answers, and what its log says then, oldest first."""

    async def run() -> tuple[list[Any], list[LoggedPrediction]]:
        store = app.service.shared.predictions
        app.service.batcher.start()
        headers = {"X-Request-Id": request_id} if request_id else {}
        async with client_of(app) as client:
            answers = [await client.post(path, json=body, headers=headers) for path, body in requests]
        await asyncio.sleep(0)
        while await recorder_of(app).store_some():
            pass
        rows = await store.find(EVERY_ROW, 10_000, oldest_first=True)
        app.service.batcher.stop()
        await store.close()
        assert [answer.status_code for answer in answers] == [200] * len(answers), answers[0].text
        return [answer.json() for answer in answers], rows

    return asyncio.run(run())


def observe(logger: PredictionLogger, *answers: Answered) -> None:
    """Tell of answers, in one turn of an event loop."""

    async def run() -> None:
        for answered in answers:
            logger.observe(answered)
        await asyncio.sleep(0)

    asyncio.run(run())


def counted(app: Application) -> dict[str, float]:
    cells = recorder_of(app).log.sheet.cells
    return dict(zip(LOGGED, cells.tolist(), strict=True))


def example(app: Application, name: str) -> dict[str, Any]:
    return dict(app.service.registry.get(name).example)


@pytest.mark.parametrize("model", MODELS)
def test_a_logged_row_is_what_was_sent_and_what_was_answered(root: Path, tmp_path: Path, model: str) -> None:
    app = build_app(root, tmp_path)
    instance = example(app, model)
    (answer,), (row,) = ask(app, (f"/v1/models/{model}:predict", {"instances": [instance]}), request_id="mine")
    assert row.row == instance
    assert row.answer == answer["predictions"][0]
    assert (row.request_id, row.place, row.key, row.model, row.version) == ("mine", 0, "", model, "1")
    assert (row.verb, row.source, row.entity) == ("predict", "miss", "")
    assert 0 < row.milliseconds < 60_000
    assert counted(app) == {"queued": 1, "dropped": 0, "stored": 1, "refused": 0}


def test_texts_missing_values_and_categories_come_back_as_they_were_sent(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    notes = ["", 'It is "broken",\nagain', "\u202eнaïve \U0001f600"]
    tickets = [{"note": note, "city": "Rome"} for note in notes]
    partly = example(app, "gaps") | {"sepal length (cm)": None}
    answers, rows = ask(
        app,
        ("/v1/models/tickets:predict", {"instances": tickets}),
        ("/v1/models/gaps:predict", {"instances": [partly]}),
    )
    assert [row.row for row in rows] == [*tickets, partly]
    assert [row.answer for row in rows] == answers[0]["predictions"] + answers[1]["predictions"]
    assert [row.place for row in rows] == [0, 1, 2, 0]


def test_explanations_and_answers_of_other_protocols_are_logged_too(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    flower = example(app, "iris")
    many = [[*flower.values()]] * 100
    tensor = {"name": "input-0", "shape": [100, len(flower)], "datatype": "FP64", "data": many}
    answers, rows = ask(
        app,
        ("/v1/models/iris:explain", {"instances": [flower]}),
        ("/v2/models/iris/infer", {"inputs": [tensor]}),
        ("/v1/models/iris:predict", {"instances": [flower]}),
    )
    assert [row.verb for row in rows] == ["explain", *["predict"] * 101]
    assert rows[0].answer == answers[0]["explanations"][0]
    assert {str(row.answer) for row in rows[1:]} == {str(answers[2]["predictions"][0])}
    assert [row.row for row in rows] == [flower] * 102


def test_a_thousand_rows_are_logged_and_a_request_larger_than_the_ring_is_counted(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    flower = example(app, "iris")
    first = next(iter(flower))
    rows = [flower | {first: flower[first] + place / 1e6} for place in range(1000)]
    _, found = ask(app, ("/v1/models/iris:predict", {"instances": rows}))
    assert [row.row for row in found] == rows
    ring = recorder_of(app).log.rings.own
    assert ring is not None
    ring.max_record = 1000
    _, found = ask(app, ("/v1/models/iris:predict", {"instances": rows}))
    assert len(found) == 1000
    assert counted(app)["dropped"] == 1000


def test_redacted_columns_are_nowhere_and_explanations_that_tell_of_them_are_not_kept(
    root: Path, tmp_path: Path
) -> None:
    app = build_app(root, tmp_path, log_predictions_redact=("note", "petal width (cm)", "unknown"))
    flower, secret = example(app, "iris"), "a-very-private-note"
    ticket = {"note": secret, "city": "Rome"}
    _, rows = ask(
        app,
        ("/v1/models/tickets:predict", {"instances": [ticket]}),
        ("/v1/models/tickets:explain", {"instances": [ticket]}),
        ("/v1/models/iris:explain", {"instances": [flower]}),
        ("/v1/models/gaps:explain", {"instances": [example(app, "gaps")]}),
    )
    assert [row.row for row in rows[:2]] == [{"city": "Rome"}] * 2
    assert rows[2].row == {name: value for name, value in flower.items() if name != "petal width (cm)"}
    assert [row.answer is None for row in rows] == [False, True, True, False]
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_a_share_is_chosen_by_the_id_of_the_request_alone(root: Path, tmp_path: Path) -> None:
    policy = LogPolicy.parse("0.25", "10 1d")
    ids = [f"request-{number}" for number in range(4000)]
    chosen = [name for name in ids if policy.logs(name)]
    assert 900 < len(chosen) < 1100
    assert LogPolicy.parse("0.5", "10 1d").logs(chosen[0])  # whoever is in a share is in every larger one
    assert not any(LogPolicy.parse("0.0", "10 1d").logs(name) for name in ids)
    app = build_app(root, tmp_path, log_predictions="0.25")
    body = {"instances": [example(app, "iris")]}
    for name in ids[:20]:
        _, rows = ask(app, ("/v1/models/iris:predict", body), request_id=name)
    assert [row.request_id for row in rows] == [name for name in ids[:20] if name in chosen]


def test_nothing_is_logged_and_nothing_made_unless_it_is_asked_for(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path, log_predictions="off")
    assert app.service.shared.recorder is None
    assert not any(isinstance(one, PredictionLogger) for one in app.service.observers)


def test_records_of_before_a_reload_and_of_after_it_are_read(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "models"
    shutil.copytree(root, own)
    app = build_app(own, tmp_path / "data")
    old = PredictionLogger(recorder_of(app).log, app.service.registry)
    before = app.service.registry.get("iris")
    shutil.rmtree(own / "iris")
    add_version(own, "later", LogisticRegression().fit(np.eye(4), [0, 1, 0, 1]), pd.DataFrame(np.eye(4)))
    successor, refused = renew(app)
    assert refused == ()
    # a worker that still drains answers with the model that is gone
    observe(old, Answered(before, "predict", np.ones((1, len(before.schema))), [b"1"], ["miss"], 0.001))
    later = example(successor, "later")
    _, rows = ask(successor, ("/v1/models/later:predict", {"instances": [later]}))
    assert [(row.model, [*row.row]) for row in rows] == [("iris", list(before.schema.names)), ("later", [*later])]


def test_a_recorder_of_before_a_reload_leaves_what_it_cannot_read_to_its_successor(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    described = recorder_of(app).log.described
    newest = described.pop()
    body = {"instances": [example(app, "gaps")]}, {"instances": [example(app, newest.name)]}
    _, rows = ask(app, ("/v1/models/gaps:predict", body[0]), (f"/v1/models/{newest.name}:predict", body[1]))
    assert [row.model for row in rows] == ["gaps"]
    described.append(newest)
    _, rows = ask(app)
    assert [row.model for row in rows] == ["gaps", newest.name]


class FaultyStore(SQLitePredictionStore):
    """Refuses rows of one key, or everything."""

    is_away = False

    async def add(self, batch: Sequence[LoggedPrediction]) -> int:
        if self.is_away:
            raise StoreUnavailable("away")
        if any(row.key == "bad" for row in batch):
            raise InvalidRequest("refused")
        return await super().add(batch)


def test_rows_wait_while_the_store_is_away_and_those_it_refuses_harm_no_others(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path / "own")
    recorder, store = recorder_of(app), FaultyStore(tmp_path)
    recorder._store = store

    async def run() -> None:
        store.is_away = True
        async with client_of(app) as client:
            await client.post("/v1/models/iris:predict", json={"instances": [example(app, "iris")]})
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await recorder.store_some()
        store.is_away = False
        assert await recorder.store_some()
        assert not await recorder.store_some()
        await recorder._add([logged(number, key="bad" if number in (2, 5) else "") for number in range(7)])
        assert len(await store.find(EVERY_ROW, 100)) == 6
        await store.close()

    asyncio.run(run())
    assert counted(app) == {"queued": 1, "dropped": 0, "stored": 6, "refused": 2}


def test_a_recorder_that_is_killed_before_it_has_said_so_stores_nothing_twice(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    ring = recorder_of(app).log.rings.own
    assert ring is not None
    tail = ring.tail
    body = {"instances": [example(app, "iris")] * 3}
    _, rows = ask(app, ("/v1/models/iris:predict", body))
    ring.release(tail)
    assert ask(app)[1] == rows


def test_a_full_ring_costs_nobody_but_its_rows(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path)
    recorder = recorder_of(app)
    flower = app.service.registry.get("iris")
    logger, rows = PredictionLogger(recorder.log, [flower]), np.ones((1000, len(flower.schema)))
    answered = Answered(flower, "predict", rows, [b"1"] * 1000, ["miss"] * 1000, 0.001)
    recorder.log.rings.own = Ring(1 << 18)
    recorder.log.rings.all = (recorder.log.rings.own,)
    observe(logger, *[answered] * 10)
    found = counted(app)
    assert found["queued"] + found["dropped"] == 10_000
    assert found["dropped"] > 2000
    assert len(ask(app)[1]) == found["queued"]
    assert counted(app)["stored"] == found["queued"]
