"""A request that takes too long becomes a job, on the real service, and its result is the request's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.admin import admin_figures
from harness.estimators import PonderingRegressor, SleepingRegressor
from harness.jobs import Answer, call, ended, until
from harness.processes import eventually
from harness.service import ADMIN_TOKEN, Service
from registry.store.add import add_version

DEADLINE = 0.5


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One model that sleeps, one whose explanations are for jobs only; two jobs may wait."""
    root = tmp_path_factory.mktemp("slow")
    sample = pd.DataFrame({"value": np.linspace(0.0, 0.001, 5)})
    add_version(root, "sleepy", SleepingRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)
    wide = pd.DataFrame({"amount": np.linspace(0.0, 0.001, 5), "other": np.arange(5.0)})
    add_version(root, "ponderer", PonderingRegressor().fit(wide.to_numpy(), None), wide, margin=1e6)
    environ = {
        "MODEL_DIR": str(root),
        "WEB_CONCURRENCY": "2",
        "MAX_REQUESTS": "0",
        "INFERENCE_TIMEOUT_SECONDS": str(DEADLINE),
        "INFERENCE_THREADS": "8",
        "USE_BACKGROUND_INFERENCE": "true",
        "JOB_MAX_QUEUED": "2",
        "EXECUTOR_PROCESSES": "1",
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with Service(environ) as service:
        yield service


def ask(service: Service, verb: str, model: str, instances: list[Any], **headers: str) -> Answer:
    body = json.dumps({"instances": instances}).encode()
    return call(service, "POST", f"/v1/models/{model}:{verb}", body, Content_Type="application/json", **headers)


def result(service: Service, job: Any) -> Any:
    return call(service, "GET", job["result"]).json


def test_a_late_prediction_goes_on_as_a_job_with_the_same_answer(slow: Service) -> None:
    in_time = ask(slow, "predict", "sleepy", [[0.001], [0.002]])
    assert in_time.status == 200
    late = ask(slow, "predict", "sleepy", [[0.001], [0.002], [0.9]])
    assert (late.status, late.json["operation"], late.json["model"]) == (202, "predict", "sleepy")
    assert late.headers["Location"] == f"/v1/jobs/{late.json['id']}"
    whole = result(slow, ended(slow, late))
    assert whole["predictions"] == [*in_time.json["predictions"], 0.9]
    assert {name: whole[name] for name in ("model", "version")} == {"model": "sleepy", "version": "1"}


def test_a_client_may_have_a_shorter_deadline(slow: Service) -> None:
    late = ask(slow, "predict", "sleepy", [[0.3]], X_Request_Timeout="0.05")
    assert late.status == 202
    assert result(slow, ended(slow, late))["predictions"] == [0.3]


def test_equal_requests_are_one_job_while_it_runs_and_when_it_is_done(slow: Service) -> None:
    first = ask(slow, "predict", "sleepy", [[0.7]])
    assert ask(slow, "predict", "sleepy", [[0.7]]).json["id"] == first.json["id"]
    ended(slow, first)
    again = ask(slow, "predict", "sleepy", [[0.7]])
    assert (again.status, again.json["id"], again.json["state"]) == (202, first.json["id"], "done")
    assert ask(slow, "predict", "sleepy", [[0.8]]).json["id"] != first.json["id"]


def test_a_job_that_was_cancelled_answers_nobody_else(slow: Service) -> None:
    first = ask(slow, "predict", "sleepy", [[1.5]])
    path = first.headers["Location"]
    call(slow, "DELETE", path)
    until(slow, path, state="cancelled")
    again = ask(slow, "predict", "sleepy", [[1.5]])
    assert again.json["id"] != first.json["id"]
    assert result(slow, ended(slow, again))["predictions"] == [1.5]


def test_the_key_of_such_a_job_cannot_be_taken_by_a_client(slow: Service) -> None:
    body = json.dumps({"operation": "predict", "model": "sleepy", "instances": [[0.0]]}).encode()
    headers = {"Content_Type": "application/json", "Idempotency_Key": f"background {'a' * 64}"}
    assert call(slow, "POST", "/v1/jobs", body, **headers).status == 400


def test_explanations_for_jobs_only_become_a_job_at_once(slow: Service) -> None:
    assert slow.get("/v1/models/ponderer")["explainer"]["jobs_only"]
    example = slow.get("/v1/models/ponderer")["example"]
    answer = ask(slow, "explain", "ponderer", [example])
    assert (answer.status, answer.json["operation"]) == (202, "explain")
    call(slow, "DELETE", answer.headers["Location"])
    until(slow, answer.headers["Location"], state="cancelled")
    wrong = json.dumps({"instances": [example], "parameters": {"classes": ["no"]}}).encode()
    assert call(slow, "POST", "/v1/models/ponderer:explain", wrong, Content_Type="application/json").status == 422


def test_where_no_more_jobs_are_taken_a_late_request_is_answered_504(slow: Service) -> None:
    answers = [ask(slow, "predict", "sleepy", [[20.0]])]
    until(slow, answers[0].headers["Location"], state="running")
    answers += [ask(slow, "predict", "sleepy", [[20.0 + number]]) for number in range(1, 4)]
    assert [answer.status for answer in answers] == [202, 202, 202, 504]
    example = slow.get("/v1/models/ponderer")["example"]
    full = ask(slow, "explain", "ponderer", [example])
    assert (full.status, int(full.headers["Retry-After"]) > 0) == (429, True), "a request cannot do it at all"
    for answer in answers[:3]:
        call(slow, "DELETE", answer.headers["Location"])


def test_what_becomes_a_job_is_in_the_figures_of_its_model(slow: Service) -> None:
    def refused(model: str, verb: str) -> Any:
        return admin_figures(slow)["models"][model][verb]["refused"]

    late, for_jobs = refused("sleepy", "predict").get("504", 0), refused("ponderer", "explain").get("202", 0)
    ended(slow, ask(slow, "predict", "sleepy", [[0.1], [0.8]]))
    ended(slow, ask(slow, "explain", "ponderer", [[0.0005, 2.0]]))
    assert eventually(lambda: refused("sleepy", "predict").get("504", 0) == late + 1)
    assert eventually(lambda: refused("ponderer", "explain").get("202", 0) == for_jobs + 1)


def test_without_the_setting_a_late_request_is_answered_504(sleeper: Path) -> None:
    environ = {"MODEL_DIR": str(sleeper), "INFERENCE_TIMEOUT_SECONDS": str(DEADLINE), "ROLES": "web"}
    with Service(environ) as service:
        assert ask(service, "predict", "sleeper", [[0.9]]).status == 504


def test_the_document_says_what_becomes_a_job(slow: Service, service: Service) -> None:
    here = call(slow, "GET", "/openapi.json").json["paths"]
    assert {"200", "202"} <= here["/v1/models/sleepy:predict"]["post"]["responses"].keys()
    only_jobs = here["/v1/models/ponderer:explain"]["post"]["responses"].keys()
    assert "202" in only_jobs
    assert "200" not in only_jobs
    elsewhere = call(service, "GET", "/openapi.json").json["paths"]
    assert all("202" not in item["post"]["responses"] for path, item in elsewhere.items() if path.endswith("dict"))
