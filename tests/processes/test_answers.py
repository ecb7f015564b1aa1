"""Answers of all kinds of models over HTTP: typed labels, margins, scores, several targets, intervals and sets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.svm import LinearSVC

from harness.jobs import until
from harness.service import ADMIN_TOKEN, Service
from registry.store.add import add_trained
from registry.training.script import Trained

RANDOM = np.random.default_rng(5)
NAMES = ["a", "b", "c"]
TABLE = pd.DataFrame(RANDOM.normal(size=(200, 3)), columns=NAMES)
ROWS = TABLE.to_numpy()
NUMBERS = ROWS @ [1.0, 2.0, -1.0] + RANDOM.normal(size=200) / 5
FLAG = NUMBERS > 0
TARGETS = np.column_stack([NUMBERS, -2 * ROWS[:, 0]])
INSTANCES = ROWS[:4].tolist()

ESTIMATORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "numbers": (LogisticRegression().fit(ROWS, FLAG.astype(int)), {}),
    "flags": (LogisticRegression().fit(ROWS, FLAG), {}),
    "margins": (LinearSVC().fit(ROWS, np.digitize(NUMBERS, [-1, 1])), {}),
    "outliers": (IsolationForest(n_estimators=10, random_state=0).fit(ROWS), {}),
    "mixture": (GaussianMixture(n_components=2, random_state=0).fit(ROWS), {}),
    "targets": (Ridge().fit(ROWS, TARGETS), {"targets": ["up", "down"]}),
    "labels": (
        RandomForestClassifier(5, random_state=0).fit(ROWS, np.column_stack([FLAG, ROWS[:, 1] > 0]).astype(int)),
        {"targets": ["first", "second"]},
    ),
    "interval": (LinearRegression().fit(ROWS[:100], NUMBERS[:100]), {"y": NUMBERS}),
    "set": (LogisticRegression().fit(ROWS[:100], FLAG[:100]), {"y": FLAG}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    for name, (estimator, options) in ESTIMATORS.items():
        given = dict(options)
        sample = TABLE
        if "y" in given:
            whole = TABLE.assign(y=given.pop("y"))
            sample = whole[:100]
            given |= {"target": "y", "calibration": whole[100:]}
        add_trained(root, name, Trained(estimator=estimator, sample=sample, **given))
    return root


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    environ = {"MODEL_DIR": str(root), "WEB_CONCURRENCY": "1", "ADMIN_TOKEN": ADMIN_TOKEN}
    with Service(environ) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=30, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, model: str, verb: str = "predict", **parameters: Any) -> httpx.Response:
    return client.post(f"/v1/models/{model}:{verb}", json={"instances": INSTANCES, "parameters": parameters})


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("model", list(ESTIMATORS))
def test_answers_are_as_the_document_says(http: httpx.Client, model: str, verb: str) -> None:
    document = http.get("/openapi.json").json()
    path = f"/v1/models/{model}:{verb}"
    operation = document["paths"][path]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    choices: list[dict[str, Any]] = [{}]
    if verb == "explain":
        choices.append({"classes": "all"})
    elif model in ("interval", "set"):
        choices.append({"coverage": 0.9})
    asked = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["parameters"]
    for parameters in choices:
        answer = ask(http, model, verb, **parameters)
        assert answer.status_code == 200, answer.text
        Draft202012Validator(schema | {"components": document["components"]}).validate(answer.json())
        Draft202012Validator(asked).validate(parameters)


def test_labels_have_their_type_and_both_forms_are_taken(http: httpx.Client) -> None:
    numbers, flags = (ask(http, model).json()["predictions"] for model in ("numbers", "flags"))
    assert [one["label"] for one in numbers] == FLAG[:4].astype(int).tolist()
    assert [repr(one["label"]) for one in flags] == [*map(repr, FLAG[:4].tolist())]
    assert numbers[0]["probabilities"].keys() == {"0", "1"}
    for sent in (1, "1"):
        chosen = ask(http, "numbers", "explain", classes=[sent]).json()["explanations"][0]
        assert (chosen["classes"].keys(), chosen["label"]) == ({"1"}, numbers[0]["label"])
    assert ask(http, "flags", "explain", classes=[True, "false"]).json()["explanations"][0]["classes"].keys() == {
        "True",
        "False",
    }
    assert ask(http, "flags", "explain", classes=[1]).status_code == 422


def test_other_forms(http: httpx.Client) -> None:
    first = {model: ask(http, model).json()["predictions"][0] for model in ESTIMATORS}
    assert (first["margins"].keys(), first["margins"]["margins"].keys()) == ({"label", "margins"}, {"0", "1", "2"})
    assert first["outliers"].keys() == {"label", "score"}
    assert first["mixture"]["probabilities"].keys() == {"0", "1"}
    assert first["targets"]["prediction"].keys() == {"up", "down"}
    assert first["labels"]["prediction"]["first"].keys() == {"label", "probabilities"}
    shown = http.get("/v1/models/labels").json()
    assert [target["name"] for target in shown["targets"]] == ["first", "second"]


def test_coverage_is_part_of_the_key_of_the_cache(http: httpx.Client) -> None:
    plain = ask(http, "interval")
    assert all(isinstance(one, float) for one in plain.json()["predictions"])
    widths = []
    for coverage in (0.5, 0.9, 0.5):
        answers = ask(http, "interval", coverage=coverage).json()["predictions"]
        assert [one["prediction"] for one in answers] == plain.json()["predictions"]
        widths.append(answers[0]["interval"][1] - answers[0]["interval"][0])
    assert widths[0] == widths[2] < widths[1]
    assert ask(http, "interval", coverage=0.9).headers["x-cache"] == "hit-memory"
    sets = ask(http, "set", coverage=0.99).json()["predictions"]
    assert all(type(label) is bool for one in sets for label in one["set"])


@pytest.mark.parametrize(
    ("model", "verb", "coverage", "detail"),
    [
        ("numbers", "predict", 0.9, "without calibration rows"),
        ("interval", "predict", 1.0, "between 0 and 1"),
        ("interval", "predict", 0, "between 0 and 1"),
        ("interval", "predict", 0.999, "the largest coverage that 100 calibration rows allow is 0.990099"),
        ("interval", "explain", 0.9, "coverage is a parameter of predictions"),
    ],
)
def test_coverage_that_cannot_be_is_refused(
    http: httpx.Client, model: str, verb: str, coverage: float, detail: str
) -> None:
    answer = ask(http, model, verb, coverage=coverage)
    assert (answer.status_code, detail in answer.text) == (422, True), answer.text
    job = {"operation": verb, "model": model, "instances": INSTANCES, "parameters": {"coverage": coverage}}
    answer = http.post("/v1/jobs", json=job)
    assert (answer.status_code, detail in answer.text) == (422, True), answer.text


COLUMNS = {
    ("numbers", "predict", ""): ["label", "probability of 0", "probability of 1"],
    ("margins", "predict", ""): ["label", "margin of 0", "margin of 1", "margin of 2"],
    ("outliers", "predict", ""): ["label", "score"],
    ("targets", "predict", ""): ["up prediction", "down prediction"],
    ("labels", "predict", ""): [
        *("first label", "first probability of 0", "first probability of 1"),
        *("second label", "second probability of 0", "second probability of 1"),
    ],
    ("interval", "predict", "&coverage=0.9"): ["prediction", "low", "high"],
    ("set", "predict", "&coverage=0.9"): ["label", "probability of False", "probability of True", "set"],
    ("targets", "explain", ""): ["target", "output", "base_value", "a", "b", "c"],
    ("labels", "explain", ""): ["target", "class", "output", "base_value", "a", "b", "c"],
}


@pytest.mark.parametrize(("model", "verb", "more"), list(COLUMNS))
def test_jobs_answer_as_requests_do_and_as_a_table(
    service: Service, http: httpx.Client, model: str, verb: str, more: str
) -> None:
    table = TABLE[:4].to_csv(index=False)
    answer = http.post(
        f"/v1/jobs?operation={verb}&model={model}{more}", content=table, headers={"Content-Type": "text/csv"}
    )
    assert answer.status_code == 202, answer.text
    job = until(service, answer.headers["location"], state="done")
    parameters = {"coverage": 0.9} if more else {}
    assert http.get(job["result"]).json() == ask(http, model, verb, **parameters).json()
    lines = list(csv.reader(io.StringIO(http.get(job["result"], headers={"Accept": "text/csv"}).text)))
    assert lines[0] == ["instance", *COLUMNS[model, verb, more]]
    assert len(lines) == 5 if verb == "predict" else 9
    assert all(cell for line in lines for cell in line)


def test_outcomes_are_taken_in_both_forms_and_judge_the_version(http: httpx.Client) -> None:
    def send(model: str, outcomes: list[Any]) -> httpx.Response:
        instances = INSTANCES[: len(outcomes)]
        return http.post(f"/v1/models/{model}/outcomes", json={"instances": instances, "outcomes": outcomes})

    right = FLAG[:4].astype(int).tolist()
    assert send("numbers", [right[0], str(right[1]), 1 - right[2], float(right[3])]).status_code == 201
    targets = [one["prediction"] for one in ask(http, "targets").json()["predictions"]]
    assert send("targets", [{"up": one["up"] + 1, "down": one["down"]} for one in targets]).status_code == 201
    labels = [one["prediction"] for one in ask(http, "labels").json()["predictions"]]
    said = [{name: str(own["label"]) for name, own in one.items()} for one in labels]
    said[0]["first"] = str(1 - int(said[0]["first"]))
    assert send("labels", said).status_code == 201
    for model, outcome in (
        ("numbers", 2),
        ("numbers", True),
        ("targets", 1.0),
        ("targets", {"up": 1.0}),
        ("labels", {}),
    ):
        assert send(model, [outcome]).status_code == 422
    quality = http.get("/api/admin/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).json()["quality"]
    happened = [right[0], right[1], 1 - right[2], right[3]]
    high = [one["probabilities"]["1"] for one in ask(http, "numbers").json()["predictions"]]
    assert quality["numbers"] == {
        "version": "1",
        "outcomes": 4,
        "accuracy": 0.75,
        "log_loss": pytest.approx(log_loss(happened, high)),
        "roc_auc": pytest.approx(roc_auc_score(happened, high)),
    }
    assert quality["labels"]["accuracy"] == 0.75
    assert quality["targets"]["mean_absolute_error"] == pytest.approx(0.5)


def test_labels_are_strings_where_the_setting_says_so(root: Path) -> None:
    with Service({"MODEL_DIR": str(root), "LABELS_AS_TEXT": "true"}) as old:
        body = json.dumps({"instances": INSTANCES}).encode()
        answers = httpx.post(
            f"{old.address}/v1/models/flags:predict", content=body, headers={"Content-Type": "application/json"}
        )
        assert [one["label"] for one in answers.json()["predictions"]] == [*map(str, FLAG[:4].tolist())]
