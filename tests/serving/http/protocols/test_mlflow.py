"""MLflow's protocol: any form of a table is read as its rows, and answered with what the estimator returns."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from harness.apps import client_of
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.errors import InvalidSetting
from serving.settings import Settings
from tests.cases import cases

COUNT = 60
RANDOM = np.random.default_rng(1)
TICKETS = pd.DataFrame(
    {
        "note": [" ".join(RANDOM.choice(["refund", "broken", "thanks", "late"], 4)) for _ in range(COUNT)],
        "city": RANDOM.choice(["Bern", "Rome"], COUNT),
        "opened": pd.date_range("2024-01-01", periods=COUNT),
        "age": RANDOM.integers(1, 9, COUNT),
    }
)
URGENT = np.where(TICKETS["note"].str.contains("broken"), "yes", "no")
SENT: list[dict[str, Any]] = [
    {"note": 'It is "broken",\nNaN, again', "city": "Lima", "opened": "2024-05-01T12:00:00+02:00", "age": 2.5},
    {"note": "naïve \U0001f600, late", "city": "Rome", "opened": "2024-05-01", "age": 3},
]
NUMBERS = pd.DataFrame({name: RANDOM.normal(size=COUNT) for name in ("a", "b", "c")})
GAPS = NUMBERS.mask(NUMBERS > 1.2)
ROWS = NUMBERS.head(4)


def fitted() -> dict[str, Any]:
    days = make_pipeline(FunctionTransformer(pd.DataFrame.astype, kw_args={"dtype": "int64"}), StandardScaler())
    head = ColumnTransformer(
        [
            ("note", TfidfVectorizer(), "note"),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("opened", days, ["opened"]),
            ("age", StandardScaler(), ["age"]),
        ]
    )
    sides = np.where(NUMBERS["a"] > 0, "up", "down")
    thirds = np.digitize(NUMBERS["a"], [-0.5, 0.5])
    return {
        "tickets": make_pipeline(head, LogisticRegression()).fit(TICKETS, URGENT),
        "sides": LogisticRegression().fit(NUMBERS, sides),
        "thirds": LogisticRegression().fit(NUMBERS, thirds),
        "margins": LinearSVC().fit(NUMBERS, sides),
        "margins-of-three": LinearSVC().fit(NUMBERS, thirds),
        "outliers": IsolationForest(n_estimators=5, random_state=1).fit(NUMBERS),
        "sum": LinearRegression().fit(NUMBERS, NUMBERS.sum(axis=1)),
        "two-sums": LinearRegression().fit(NUMBERS, NUMBERS[["a", "b"]] * 2),
        "gaps": HistGradientBoostingRegressor(max_iter=5).fit(GAPS, NUMBERS["b"]),
    }


ESTIMATORS = fitted()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mlflow") / "models"
    samples = {"tickets": TICKETS, "gaps": GAPS}
    for name, estimator in ESTIMATORS.items():
        add_trained(root, name, Trained(estimator=estimator, sample=samples.get(name, NUMBERS)))
    return root


def make_app(root: Path, **settings: Any) -> Application:
    chosen = Settings(model_dir=root, data_dir=root.parent / "data", access_log=False, **settings)
    return build(chosen, build_alerts(chosen))


@pytest.fixture(scope="module")
def app(root: Path) -> Application:
    return make_app(root, default_model="sides", max_instances=100)


def ask(app: Application, method: str, path: str, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with AsyncExitStack() as closing:
            await app.service.open(closing)
            client = await closing.enter_async_context(client_of(app))
            return await client.request(method, path, **options)

    return asyncio.run(once())


def post(app: Application, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(app, "POST", path, content=content, headers={"content-type": "application/json"} | headers)


def predicted(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["predictions"]


def path_of(model: str) -> str:
    return f"/endpoints/{model}/invocations"


def as_csv(frame: pd.DataFrame, **options: Any) -> bytes:
    text: str = frame.to_csv(index=False, **options)
    return text.encode()


SHUFFLED = ROWS[["c", "a", "b"]].set_index(pd.Index([7, 3, 9, 1]))
TABLES: dict[str, tuple[Any, str]] = {
    "split": ({"dataframe_split": ROWS.to_dict(orient="split")}, "application/json"),
    "split, shuffled": ({"dataframe_split": SHUFFLED.to_dict(orient="split")}, "application/json; charset=utf-8"),
    "split, tight": ({"dataframe_split": SHUFFLED.to_dict(orient="tight")}, "application/json"),
    "split, no columns": ({"dataframe_split": {"data": ROWS.to_numpy().tolist()}}, "application/json"),
    "records": ({"dataframe_records": SHUFFLED.to_dict(orient="records")}, "application/json"),
    "instances": ({"instances": ROWS.to_numpy().tolist()}, "application/json"),
    "instances by name": ({"instances": SHUFFLED.to_dict(orient="records")}, "application/json"),
    "instances by column": ({"instances": SHUFFLED.to_dict(orient="list")}, "application/json"),
    "inputs": ({"inputs": ROWS.to_numpy().tolist(), "params": None}, "application/json"),
    "inputs by column": ({"inputs": SHUFFLED.to_dict(orient="list")}, "application/json"),
    "inputs as tensors": (
        {"inputs": {name: [[cell] for cell in column] for name, column in SHUFFLED.items()}},
        "application/json",
    ),
    "csv": (as_csv(ROWS), "text/csv"),
    "csv, shuffled": (as_csv(SHUFFLED), "Text/CSV; charset=utf-8"),
    "csv, spaces in the header": (as_csv(SHUFFLED).replace(b"c,a,b", b" c , a, b", 1), "text/csv"),
    "csv, header present": (as_csv(SHUFFLED), "text/csv; header=present"),
    "csv, header absent": (as_csv(ROWS, header=False), 'text/csv;header="absent"'),
    "csv, no header": (as_csv(ROWS, header=False), "text/csv"),
    "csv, line ends of Windows": (as_csv(ROWS, header=False, lineterminator="\r\n").rstrip(), "text/csv"),
}


def test_every_form_of_a_table_is_answered_as_its_rows(app: Application) -> None:
    expected = ESTIMATORS["sum"].predict(ROWS).tolist()
    with cases() as case:
        for name, (body, kind) in TABLES.items():
            with case(name):
                found = predicted(post(app, path_of("sum"), body, **{"content-type": kind}))
                assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("path", ["/invocations", path_of("sides"), "/serving-endpoints/sides/invocations", "/score"])
def test_every_path_answers_labels_or_probabilities(app: Application, path: str) -> None:
    body = {"dataframe_records": ROWS.to_dict(orient="records")}
    assert predicted(post(app, path, body)) == ESTIMATORS["sides"].predict(ROWS).tolist()
    found = predicted(post(app, path, body | {"params": {"method": "predict_proba"}}))
    assert np.array(found) == pytest.approx(ESTIMATORS["sides"].predict_proba(ROWS))


def test_each_model_answers_what_its_estimator_returns(app: Application) -> None:
    body = {"instances": ROWS.to_numpy().tolist()}
    with cases() as case:
        for name in ESTIMATORS.keys() - {"tickets", "gaps"}:
            for method in ("predict", "predict_proba", "decision_function"):
                with case((name, method)):
                    answer = post(app, path_of(name), body | {"params": {"method": method}})
                    if not answers(name, method):
                        assert answer.status_code == 422
                        assert f"has no {method}" in answer.json()["detail"]
                        continue
                    expected = getattr(ESTIMATORS[name], method)(ROWS).tolist()
                    found = predicted(answer)
                    assert found == (expected if isinstance(expected[0], str) else pytest.approx(np.array(expected)))


def answers(name: str, method: str) -> bool:
    """Whether the estimator has the method; what has probabilities answers these in place of margins."""
    estimator = ESTIMATORS[name]
    hidden = method == "decision_function" and hasattr(estimator, "predict_proba")
    return hasattr(estimator, method) and not hidden


def test_texts_dates_and_categories_are_read_as_by_predict(app: Application) -> None:
    shares = [
        list(one["probabilities"].values())
        for one in post(app, "/v1/models/tickets:predict", {"instances": SENT}).json()["predictions"]
    ]
    frame = pd.DataFrame(SENT)[["opened", "age", "note", "city"]]
    proba = {"params": {"method": "predict_proba"}}
    bodies: list[Any] = [
        {"dataframe_split": frame.to_dict(orient="split")} | proba,
        {"dataframe_records": SENT} | proba,
        {"inputs": frame.to_dict(orient="list")} | proba,
        {"instances": [list(one.values()) for one in SENT]} | proba,
    ]
    for body in bodies:
        assert np.array(predicted(post(app, path_of("tickets"), body))) == pytest.approx(np.array(shares))
    labels = predicted(post(app, path_of("tickets"), {"dataframe_records": SENT}))
    for content in (as_csv(frame), as_csv(pd.DataFrame(SENT), header=False)):
        assert predicted(post(app, path_of("tickets"), content, **{"content-type": "text/csv"})) == labels


def test_missing_values_are_read_as_by_predict_whoever_writes_them(app: Application) -> None:
    frame = GAPS.head(30)
    assert frame.isna().any().all()
    expected = pytest.approx(ESTIMATORS["gaps"].predict(frame), rel=1e-9)
    null = frame.astype(object).where(frame.notna(), None)
    with cases() as case:
        for way, table in (("null", null), ("NaN", frame)):
            for name, body in {
                "split": {"dataframe_split": table[["c", "b", "a"]].to_dict(orient="split")},
                "records": {"dataframe_records": table.to_dict(orient="records")},
                "columns": {"inputs": table.to_dict(orient="list")},
                "rows": {"inputs": table.to_numpy().tolist()},
            }.items():
                with case((way, name)):
                    assert predicted(post(app, path_of("gaps"), body)) == expected
        for name, text in {"empty": "", "numpy": "nan", "pandas": "NaN"}.items():
            with case(("csv", name)):
                content = as_csv(frame, na_rep=text)
                assert predicted(post(app, path_of("gaps"), content, **{"content-type": "text/csv"})) == expected
    refused = post(app, path_of("sum"), {"inputs": frame.to_numpy().tolist()})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["reason"] == "must not be null"


@pytest.mark.parametrize(
    ("body", "twin"),
    [
        ({"data": ROWS.to_numpy().tolist()}, False),
        ({"data": ROWS.to_dict(orient="records"), "method": "predict"}, False),
        ({"input_data": ROWS.to_numpy().tolist()}, False),
        ({"input_data": SHUFFLED.to_dict(orient="split")}, False),
        ({"input_data": SHUFFLED.to_dict(orient="list"), "params": {}}, False),
        ({"Inputs": {"data": ROWS.to_dict(orient="records")}, "GlobalParameters": {"method": "predict"}}, True),
        ({"Inputs": {"input1": SHUFFLED.to_dict(orient="records")}, "GlobalParameters": 1.0}, True),
    ],
)
def test_azure_ml_has_names_of_its_own(app: Application, body: Any, twin: object) -> None:
    expected = ESTIMATORS["sides"].predict(ROWS).tolist()
    answer = post(app, "/score", body)
    assert predicted(answer) == expected
    assert answer.json().get("Results") == (expected if twin else None)
    assert post(app, "/invocations", body).status_code == 422, "these names are those of Azure ML alone"


def test_an_answer_is_a_csv_where_that_is_accepted(app: Application) -> None:
    body = as_csv(ROWS, header=False)
    kinds = {"content-type": "text/csv", "accept": "text/csv"}
    answer = post(app, "/invocations", body, **kinds)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text.splitlines() == ESTIMATORS["sides"].predict(ROWS).tolist()
    found = post(app, path_of("two-sums"), body, **kinds).text
    numbers = [[float(cell) for cell in line] for line in csv.reader(io.StringIO(found))]
    assert np.array(numbers) == pytest.approx(ESTIMATORS["two-sums"].predict(ROWS))
    assert post(app, "/invocations", body, **kinds | {"accept": "text/csv;q=0.1, */*"}).json()


def test_rows_share_the_cache_with_predict_and_its_headers(app: Application) -> None:
    row = [0.125, 0.25, 0.5]

    async def both() -> list[httpx.Response]:
        async with client_of(app) as client:
            return [
                await client.post("/v1/models/sides:predict", json={"instances": [row]}),
                await client.post("/invocations", json={"inputs": [row]}),
            ]

    first, second = asyncio.run(both())
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit-memory")
    assert "total;dur=" in second.headers["server-timing"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping_is_answered_as_long_as_the_default_model_is_there(app: Application, method: str) -> None:
    answer = ask(app, method, "/ping")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert ask(app, "GET", "/version").headers["content-type"].startswith("text/plain")


def test_the_service_is_alive_also_without_pages(root: Path) -> None:
    assert ask(make_app(root, pages=False), "GET", "/").json() == {"status": "alive"}


def test_the_only_model_is_the_default_and_of_several_none(root: Path, tmp_path: Path) -> None:
    several = make_app(root)
    answer = post(several, "/invocations", {"inputs": [[1, 2, 3]]})
    assert answer.status_code == 404
    assert "DEFAULT_MODEL" in answer.json()["detail"]
    assert ask(several, "GET", "/ping").status_code == 200
    add_trained(tmp_path / "models", "one", Trained(estimator=ESTIMATORS["sum"], sample=NUMBERS))
    assert predicted(post(make_app(tmp_path / "models"), "/invocations", {"inputs": [[1, 2, 3]]})) == [pytest.approx(6)]


def test_a_default_model_that_is_not_there_refuses_the_start(root: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"^DEFAULT_MODEL must be one of the models: gaps, margins, "):
        make_app(root, default_model="nothing")
    with pytest.raises(InvalidSetting, match=r"^DEFAULT_MODEL must name the model of AIP_PREDICT_ROUTE: gaps, "):
        make_app(root, aip_predict_route="/predict")


def test_vertex_ai_calls_the_paths_that_it_names(root: Path) -> None:
    predict, health = "/v1/endpoints/1/deployedModels/2:predict", "/v1/endpoints/1/deployedModels/2"
    app = make_app(root, default_model="sum", aip_predict_route=predict, aip_health_route=health)
    answer = post(app, predict, {"instances": [[1, 2, 3]], "parameters": None})
    assert predicted(answer) == [pytest.approx(6)]
    assert ask(app, "GET", health).status_code == 200
    assert ask(app, "GET", predict).status_code == 405
    assert ask(app, "POST", health).status_code == 405


@pytest.mark.parametrize("route", ["/v1/models/thirds:predict", "/score", "/invocations"])
def test_a_path_of_vertex_ai_that_is_ours_stays_what_it_is(root: Path, route: str) -> None:
    app = make_app(root, default_model="sum", aip_predict_route=route, aip_health_route="/health/ready")
    assert post(app, route, {"instances": [[1, 2, 3]]}).status_code == 200
    assert ask(app, "GET", "/health/ready").json() == {"status": "ok"}
    answer = post(app, "/v1/models/thirds:predict", {"instances": [[1, 2, 3]]})
    assert answer.json()["model"] == "thirds"


def test_one_path_of_vertex_ai_may_be_both(root: Path) -> None:
    app = make_app(root, default_model="sum", aip_predict_route="/both", aip_health_route="/both")
    assert ask(app, "GET", "/both").status_code == 200
    assert predicted(post(app, "/both", {"instances": [[1, 2, 3]]})) == [pytest.approx(6)]
