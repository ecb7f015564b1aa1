"""The OpenAPI document: whole, true to the answers, with one typed operation for every model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from jsonschema import Draft202012Validator

from examples.train import DEMOS

MODELS = [demo.name for demo in DEMOS]
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    whole: dict[str, Any] = answer.json()
    return whole


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the document's components beside it, so that references are found."""
    return schema | {"components": document["components"]}


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert {"title", "version"} <= document["info"].keys()
    for path, method, operation in operations(document):
        assert path.startswith("/")
        assert method in METHODS
        assert operation["responses"]
        assert all(re.fullmatch("[1-5][0-9][0-9]", status) for status in operation["responses"])
        assert all(answer["description"] for answer in operation["responses"].values())
        names = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert names == set(re.findall(r"{(\w+)}", path)), path
    identities = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(identities)) == len(identities)


def test_names_that_generated_clients_use_stay(document: dict[str, Any]) -> None:
    identities = {
        operation["operationId"]
        for path, _, operation in operations(document)
        if not re.search(r":(predict|explain)\b", path)
    }
    assert identities == {
        "cancel_v1_jobs__job_id__delete",
        "events_api_admin_events_get",
        "follow_job_v1_jobs__job_id__events_get",
        "follow_v1_entities__entity__events_get",
        "health_health_get",
        "list_models_v1_models_get",
        "live_health_live_get",
        "metrics_api_admin_metrics_get",
        "predict_v1_entities__entity__predictions_get",
        "prometheus_metrics_get",
        "ready_health_ready_get",
        "reload_api_admin_models_reload_post",
        "result_v1_jobs__job_id__result_get",
        "rollback_api_admin_models__model__rollback_post",
        "show_model_v1_models__model__get",
        "show_v1_jobs__job_id__get",
        "show_version_v1_models__model__versions__version__get",
        "store_v1_entities__entity__records_post",
        "store_v1_models__model__outcomes_post",
        "submit_v1_jobs_post",
        "train_api_admin_models__model__train_post",
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"values": {"a": []}},
        {"records": []},
        {"values": {}, "records": [{"values": {}}]},
        {"records": [{"values": {"a": {}}}]},
        {"records": [{}]},
    ],
)
def test_records_that_the_schema_refuses_the_service_refuses_too(
    client: httpx.Client, document: dict[str, Any], body: dict[str, Any]
) -> None:
    operation = document["paths"]["/v1/entities/{entity}/records"]["post"]
    schema = resolved(document, operation["requestBody"]["content"]["application/json"]["schema"])
    assert Draft202012Validator(schema).is_valid({"values": {"a": 1.5, "b": None}})
    assert Draft202012Validator(schema).is_valid({"records": [{"values": {"a": True}, "id": "x"}]})
    assert not Draft202012Validator(schema).is_valid(body)
    assert client.post("/v1/entities/e/records", json=body).status_code == 422


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = 0

    def walk(value: Any) -> None:
        nonlocal found
        if isinstance(value, list):
            for inner in value:
                walk(inner)
        if isinstance(value, dict):
            if isinstance(value.get("schema"), dict):
                Draft202012Validator.check_schema(value["schema"])
                found += 1
            if "$ref" in value:
                target: Any = document
                for step in value["$ref"].removeprefix("#/").split("/"):
                    target = target[step]
                found += 1
            for inner in value.values():
                walk(inner)

    walk(document)
    assert found > 20


def test_every_model_has_an_operation_of_its_own(document: dict[str, Any]) -> None:
    predicting = {path for path in document["paths"] if path.endswith(":predict")}
    assert predicting == {f"/v1/models/{model}{version}:predict" for model in MODELS for version in ("", "/versions/1")}
    assert all(set(document["paths"][path]) == {"post"} for path in predicting)


@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize("model", MODELS)
def test_example_fits_its_schema_and_is_answered_as_promised(
    client: httpx.Client, document: dict[str, Any], model: str, version: str
) -> None:
    path = f"/v1/models/{model}{version}:predict"
    operation = document["paths"][path]["post"]
    taken = resolved(document, operation["requestBody"]["content"]["application/json"]["schema"])
    jsonschema.validate(taken["example"], taken)
    answer = client.post(path, json=taken["example"])
    assert answer.status_code == 200
    given = resolved(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    jsonschema.validate(answer.json(), given)
    assert not Draft202012Validator(given).is_valid(answer.json() | {"model": "another"})
    assert not Draft202012Validator(given).is_valid(answer.json() | {"predictions": [{"label": "none of them"}]})


SPOILT = [
    ("a feature missing", lambda body: body["instances"][0].popitem()),
    ("an unknown feature", lambda body: body["instances"][0].update(unknown=1)),
    ("a number as text", lambda body: body["instances"][0].update({"loan_amount": "128"})),
    ("a number as boolean", lambda body: body["instances"][0].update({"loan_amount": True})),
    ("a number far outside", lambda body: body["instances"][0].update({"loan_amount": 1e9})),
    ("an unknown category", lambda body: body["instances"][0].update({"county": "Essex"})),
    ("a category that is null", lambda body: body["instances"][0].update({"county": None})),
    ("a boolean as number", lambda body: body["instances"][0].update({"gift": 0})),
    ("mixed kinds", lambda body: body["instances"].append(list(body["instances"][0].values()))),
    ("no instances", lambda body: body["instances"].clear()),
    ("a short row", lambda body: body.update(instances=[[1]])),
    ("another field", lambda body: body.update(other=1)),
]


@pytest.mark.parametrize("spoil", [spoil for _, spoil in SPOILT], ids=[name for name, _ in SPOILT])
def test_what_the_schema_refuses_the_service_refuses_too(
    client: httpx.Client, document: dict[str, Any], spoil: Any
) -> None:
    operation = document["paths"]["/v1/models/mortgage:predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = {"instances": [dict(schema["example"]["instances"][0])]}
    spoil(body)
    assert not Draft202012Validator(schema).is_valid(body)
    answer = client.post("/v1/models/mortgage:predict", json=body)
    assert answer.status_code == 422
    problem = operation["responses"]["422"]["content"]["application/problem+json"]["schema"]
    jsonschema.validate(answer.json(), resolved(document, problem))


def test_document_names_no_other_host(document: dict[str, Any]) -> None:
    assert "://" not in str(document)
