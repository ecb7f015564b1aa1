"""Texts, dates and open categories on the real service: requests, streams, jobs, records and outcomes."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from harness.entities import ask, post, send_outcomes, send_record
from harness.jobs import call, ended, send, send_table
from harness.processes import eventually
from harness.service import ADMIN_TOKEN, Service
from harness.sse import Stream
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.cli.client import RemoteService
from serving.cli.verify import findings
from tests.conftest import Run

COUNT = 60
RANDOM = np.random.default_rng(1)
WORDS = ["refund", "broken", "thanks", "late", "great", "invoice"]
TICKETS = pd.DataFrame(
    {
        "note": [" ".join(RANDOM.choice(WORDS, 4)) for _ in range(COUNT)],
        "city": RANDOM.choice(["Bern", "Rome"], COUNT),
        "opened": pd.date_range("2024-01-01", periods=COUNT),
        "age": RANDOM.integers(1, 9, COUNT),
    }
)
URGENT = np.where(TICKETS["note"].str.contains("broken"), "yes", "no")
SENT: list[dict[str, Any]] = [
    {"note": 'It is "broken",\nagain', "city": "Lima", "opened": "2024-05-01T12:00:00+02:00", "age": 2.5},
    {"note": "", "city": "Rome", "opened": "2024-122", "age": 3},
    {"note": "\u202eнaïve \U0001f600, 01069", "city": "", "opened": "2024-05-01", "age": 4},
    {"note": "NA", "city": "None", "opened": "2255-12-31", "age": 0},
]
OPENED = ["2024-05-01T10:00", "2024-05-01", "2024-05-01", "2255-12-31"]


@pytest.fixture(scope="module")
def estimators() -> dict[str, Any]:
    days = make_pipeline(FunctionTransformer(pd.DataFrame.astype, kw_args={"dtype": "int64"}), StandardScaler())
    head = ColumnTransformer(
        [
            ("note", TfidfVectorizer(), "note"),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("opened", days, ["opened"]),
            ("age", StandardScaler(), ["age"]),
        ]
    )
    return {
        "tickets": make_pipeline(head, LogisticRegression()).fit(TICKETS, URGENT),
        "notes": make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TICKETS["note"].tolist(), URGENT),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def desk(estimators: dict[str, Any], root: Path) -> Iterator[Service]:
    """One worker and one runner over a model of texts alone, and one of texts beside other columns."""
    for name, sample in (("tickets", TICKETS), ("notes", TICKETS[["note"]])):
        trained = Trained(estimator=estimators[name], sample=sample.assign(urgent=URGENT), target="urgent")
        add_trained(root / "models", name, trained, entities=True)
    environ = {
        "MODEL_DIR": str(root / "models"),
        "DATA_DIR": str(root / "data"),
        "WEB_CONCURRENCY": "1",
        "SHAP_MAX_BATCH_SIZE": "3",
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with Service(environ) as service:
        assert eventually(lambda: len(service.runners) == 1)
        yield service


def table() -> pd.DataFrame:
    """SENT as the estimator takes it."""
    return pd.DataFrame(SENT).assign(opened=pd.to_datetime(OPENED, format="ISO8601").astype("datetime64[us]"))


def predicted(service: Service, model: str, instances: list[Any]) -> Any:
    answer = post(service, f"/v1/models/{model}:predict", {"instances": instances})
    assert answer.status == 200, answer.body
    return answer.json["predictions"]


def shares(predictions: Any) -> Any:
    return [list(one["probabilities"].values()) for one in predictions]


def test_requests_give_what_the_estimator_gives_and_are_kept(desk: Service, estimators: dict[str, Any]) -> None:
    expected = estimators["tickets"].predict_proba(table())
    assert shares(predicted(desk, "tickets", SENT)) == pytest.approx(expected)
    assert shares(predicted(desk, "tickets", [list(one.values()) for one in SENT])) == pytest.approx(expected)
    notes = [{"note": one["note"]} for one in SENT]
    assert shares(predicted(desk, "notes", notes)) == pytest.approx(
        estimators["notes"].predict_proba([one["note"] for one in notes])
    )
    again = post(desk, "/v1/models/tickets:predict", {"instances": SENT})
    assert again.headers["X-Cache"] == "hit-memory"
    other = post(desk, "/v1/models/tickets:predict", {"instances": [SENT[0] | {"note": "another"}]})
    assert other.headers["X-Cache"] == "miss"
    unknown = post(desk, "/v1/models/tickets:predict", {"instances": [SENT[0] | {"city": "Quito"}]})
    assert unknown.headers["X-Cache"] == "hit-memory"  # as good as Lima


BAD: list[tuple[bytes, int, str]] = [
    (b'{"instances":[["a","Bern","2016-12-31T23:59:60Z",1]]}', 422, "leap second"),
    (b'{"instances":[["a","Bern","9999-12-31",1]]}', 422, "between the years"),
    (b'{"instances":[["a","Bern","+012024-01-01",1]]}', 422, "between the years"),
    (b'{"instances":[["a","Bern","yesterday",1]]}', 422, "ISO 8601"),
    (b'{"instances":[["a","Bern",1714550400,1]]}', 422, "in a string"),
    (b'{"instances":[["a\\u0000b","Bern","2024-05-01",1]]}', 422, "NUL"),
    (b'{"instances":[["a","a\\u0000b","2024-05-01",1]]}', 422, "NUL"),
    (b'{"instances":[["\\ud83d","Bern","2024-05-01",1]]}', 400, "JSON"),
    (b'{"instances":[["\xed\xa0\xbd","Bern","2024-05-01",1]]}', 400, "UTF-8"),
    (b'{"instances":[["%s","Bern","2024-05-01",1]]}' % (b"x" * 10_001), 422, "at most 10000 characters"),
    (b'{"instances":[["a","%s","2024-05-01",1]]}' % (b"x" * 10_001), 422, "at most 10000 characters"),
    (b'{"instances":[["%s","Bern","2024-05-01",1]]}' % (b"x" * 4_000_000), 422, "has more than"),
    (b'{"instances":[[5,"Bern","2024-05-01",1]]}', 422, "must be a string"),
    (b'{"instances":[["a",5,"2024-05-01",1]]}', 422, "must be a string"),
]


@pytest.mark.parametrize(("body", "status", "reason"), BAD, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_said_clearly(desk: Service, body: bytes, status: int, reason: str) -> None:
    answer = call(desk, "POST", "/v1/models/tickets:predict", body, Content_Type="application/json")
    assert (answer.status, reason in answer.body.decode()) == (status, True), answer.body[:500]


def test_explanations_add_up_and_come_in_parts(desk: Service) -> None:
    direct = post(desk, "/v1/models/tickets:explain", {"instances": SENT[:3]})
    assert direct.status == 200, direct.body
    for one in direct.json["explanations"]:
        assert one["base_value"] + sum(one["values"].values()) == pytest.approx(one["output"])


@pytest.mark.anyio
async def test_a_stream_gives_what_a_request_gives(desk: Service) -> None:
    body = json.dumps({"instances": SENT}).encode()
    async with Stream(desk.address, "/v1/models/tickets:predict", method="POST", body=body) as answer:
        frames = [frame async for frame in answer]
    found = [json.loads(frame["data"]) for frame in frames if frame["event"] == "prediction"]
    assert found == predicted(desk, "tickets", SENT)


@pytest.mark.parametrize("operation", ["predict", "explain"])
def test_jobs_give_what_requests_give(desk: Service, operation: str) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["age", "note", "opened", "city"])
    writer.writeheader()
    writer.writerows(SENT[:2] + SENT[3:])
    as_json = ended(desk, send(desk, operation, "tickets", SENT[:2] + SENT[3:]))
    as_table = ended(desk, send_table(desk, operation, "tickets", text.getvalue().encode()))
    assert (as_json["state"], as_table["state"]) == ("done", "done"), (as_json, as_table)
    results = [call(desk, "GET", job["result"]).json for job in (as_json, as_table)]
    assert results[0] == results[1]
    if operation == "predict":
        assert results[0]["predictions"] == predicted(desk, "tickets", SENT[:2] + SENT[3:])


def test_records_and_outcomes_keep_what_was_sent(desk: Service, root: Path) -> None:
    for values in SENT[:1]:
        assert send_record(desk, "t-1", values=values).status == 201
    answer = ask(desk, "t-1")
    assert answer.status == 200, answer.body
    by_model = {one["model"]: one["predictions"] for one in answer.json["models"]}
    assert by_model["tickets"] == predicted(desk, "tickets", SENT[:1])
    assert by_model["notes"] == predicted(desk, "notes", [{"note": SENT[0]["note"]}])
    sent = {"instances": SENT, "outcomes": ["yes", "no", "no", "no"]}
    assert send_outcomes(desk, "tickets", sent).status in (201, 202)
    with closing(sqlite3.connect(root / "data/data.db")) as database:
        kept = [json.loads(row[0]) for row in database.execute("select instance from outcomes order by number")]
    assert [(one["note"], one["city"]) for one in kept] == [(one["note"], one["city"]) for one in SENT]
    assert [one["opened"][:10] for one in kept] == [moment[:10] for moment in OPENED]


def test_the_service_describes_its_features_and_is_verified(desk: Service) -> None:
    described = desk.get("/v1/models/tickets")["schema"]["properties"]
    assert described["note"] == {"type": "string", "maxLength": 10_000}
    assert described["opened"] == {"type": ["string", "null"], "format": "date-time"}
    assert described["city"] == {"type": ["string", "null"], "x-known-values": ["Bern", "Rome"]}
    with RemoteService(desk.address, ADMIN_TOKEN) as service:
        assert [one for one in findings(service) if one.fault] == []


def test_a_pickle_of_a_text_classifier_is_added_by_one_command(
    estimators: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    joblib.dump(estimators["notes"], tmp_path / "notes.joblib")
    TICKETS[["note"]].assign(urgent=URGENT).to_csv(tmp_path / "notes.csv", index=False)
    files = [str(tmp_path / "notes.joblib"), "--data", str(tmp_path / "notes.csv")]
    added = run("add", *files, "--name", "notes", "--target", "urgent", MODEL_DIR=str(tmp_path / "models"))
    assert (added.returncode, added.stderr) == (0, "")
    assert "note     text of at most 10000 characters  no             TfidfVectorizer" in added.stdout
