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
from harness.service import ADMIN_TOKEN
from serving.http.openapi import ROUTES
from serving.http.problems import form_of
from serving.http.protocols.v2_openapi import V2_ROUTES

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
    names = {(method, path): said.name for (method, path), said in {**ROUTES, **V2_ROUTES}.items()}
    general = [one for one in operations(document) if one[0] in {path for _, path in names}]
    assert {(method, path): operation["operationId"] for path, method, operation in general}.items() <= names.items()
    assert all(name.isidentifier() for name in names.values())
    assert names["post", "/v1/jobs"] == "submit_job"
    own = {path for path, _, _ in operations(document) if path.split("/")[3:4] and "{" not in path and ":" in path}
    undescribed = {path for path, _, _ in operations(document)} - {path for _, path in names} - own
    assert undescribed == set(), "each route has its line in serving/http/openapi.py"


BODILESS = {"/v1/predictions/{request_id}:explain"}
"""It explains a row that is logged, and takes nothing else."""


def test_every_answer_has_a_schema_and_no_refusal_is_fastapis_own(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method in ("post", "put", "patch") and not path.startswith("/api/admin") and path not in BODILESS:
            assert operation["requestBody"]["content"], path
        for status, answer in operation["responses"].items():
            kinds = set(answer.get("content", ()))
            if status >= "400":
                assert kinds == {form_of(path).content_type.decode()}, (path, status)
            else:
                assert kinds or status == "204", (path, status)
        if not path.startswith(("/health", "/ping", "/version", "/v2/health")):
            assert {"401", "403", "429"} <= operation["responses"].keys(), path
    assert not {"HTTPValidationError", "ValidationError"} & document["components"]["schemas"].keys()


def test_every_array_and_every_object_says_what_is_in_it(document: dict[str, Any]) -> None:
    def check(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(check, value))
        if not isinstance(value, dict):
            return 0
        kinds = value.get("type", ())
        is_array, is_object = "array" in kinds, "object" in kinds
        assert not is_array or "items" in value, value
        assert not is_object or {"properties", "additionalProperties"} & value.keys(), value
        return is_array + sum(map(check, value.values()))

    assert check(document["paths"]) + check(document["components"]) > 20


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
    own = {f"/v1/models/{model}{version}:predict" for model in MODELS for version in ("", "/versions/1")}
    assert predicting - own == {"/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"}
    assert predicting >= own
    assert not any("202" in document["paths"][path]["post"]["responses"] for path in predicting), "none becomes a job"
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


def test_what_a_request_may_not_mix_the_schema_refuses(document: dict[str, Any]) -> None:
    for path, one in (("wine", 13.2), ("{model}", 13.2)):
        operation = document["paths"][f"/v1/models/{path}:predict"]["post"]
        schema = Draft202012Validator(operation["requestBody"]["content"]["application/json"]["schema"])
        example = document["paths"]["/v1/models/wine:predict"]["post"]["requestBody"]["content"]["application/json"]
        (named,) = example["schema"]["example"]["instances"]
        listed = [one] * len(named)
        assert schema.is_valid({"instances": [named, named]})
        assert not schema.is_valid({"instances": [named, listed]})
        for classes, valid in ((["class_0"], True), (["class_0", "class_0"], False), ([None], False)):
            assert schema.is_valid({"instances": [named], "parameters": {"classes": classes}}) is valid


def test_parameters_that_routes_read_as_text_have_the_schema_of_what_they_are(document: dict[str, Any]) -> None:
    found = {
        parameter["name"].lower(): parameter["schema"].get("type")
        for _, _, operation in operations(document)
        for parameter in operation.get("parameters", [])
    }
    assert {found[name] for name in ("limit", "last-event-id", "last_event_id")} == {"integer"}
    assert (found["x-request-timeout"], found["explain"], found["before"]) == ("number", "boolean", "string")
    assert not any(
        "anyOf" in parameter["schema"]
        for _, _, operation in operations(document)
        for parameter in operation.get("parameters", [])
    )


def test_document_names_no_other_host(document: dict[str, Any]) -> None:
    assert "://" not in str(document)


def check_answer(document: dict[str, Any], method: str, path: str, answer: httpx.Response) -> None:
    """Fail unless the document promises this status, media type and content."""
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, (method, path, answer.status_code, answer.text)
    content = responses[str(answer.status_code)].get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in content or not answer.content, (method, path, kind)
    if kind.endswith("json"):
        jsonschema.validate(answer.json(), resolved(document, content[kind]["schema"]))


ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
JOBS = "/v1/jobs/{job_id}"
RECORDS = "/v1/entities/{entity}/records"
PREDICTIONS = "/v1/entities/{entity}/predictions"
OUTCOMES = "/v1/models/{model}/outcomes"
ENTITY = "/v1/entities/documented"
VALUES = {"values": {"a": 1.5}}

ASKED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("get", "/v1/models", "/v1/models", {}),
    ("get", "/v1/models/{model}", "/v1/models/none", {}),
    *[("get", "/v1/models/{model}", f"/v1/models/{model}", {}) for model in MODELS],
    ("get", "/v1/models/{model}/versions/{version}", "/v1/models/wine/versions/1", {}),
    ("get", "/v1/models/{model}/versions/{version}", "/v1/models/wine/versions/9", {}),
    ("get", "/v1/models/{model}/metadata", "/v1/models/wine/metadata", {}),
    ("get", "/v1/models/{model}/metadata", "/v1/models/none/metadata", {}),
    ("get", "/v1/models/{model}/versions/{version}/metadata", "/v1/models/wine/versions/1/metadata", {}),
    ("get", "/health", "/health", {}),
    ("get", "/health/live", "/health/live", {}),
    ("get", "/health/ready", "/health/ready", {}),
    ("post", RECORDS, f"{ENTITY}/records", {"json": VALUES | {"id": "x"}}),
    ("post", RECORDS, f"{ENTITY}/records", {"json": VALUES | {"id": "x"}}),
    ("post", RECORDS, f"{ENTITY}/records", {"json": {}}),
    ("post", RECORDS, f"{ENTITY}/records", {"content": b"{"}),
    ("post", RECORDS, f"{ENTITY}/records", {"json": {}, "headers": {"content-type": "text/plain"}}),
    ("get", RECORDS, f"{ENTITY}/records", {}),
    ("get", "/v1/entities", "/v1/entities", {}),
    ("delete", RECORDS, f"{ENTITY}/records", {"headers": ADMIN}),
    ("delete", "/v1/entities/{entity}", ENTITY, {"headers": ADMIN}),
    ("get", PREDICTIONS, "/v1/entities/nobody/predictions", {}),
    ("get", PREDICTIONS, f"{ENTITY}/predictions?limit=x", {}),
    ("post", OUTCOMES, "/v1/models/wine/outcomes", {"json": {"instances": "WINE", "outcomes": ["class_0"]}}),
    ("post", OUTCOMES, "/v1/models/wine/outcomes", {"json": {"instances": [], "outcomes": []}}),
    ("post", OUTCOMES, "/v1/models/wine/outcomes", {"json": {"outcomes": [{"request_id": "a", "outcome": "class_0"}]}}),
    ("post", OUTCOMES, "/v1/models/none/outcomes", {"json": {"instances": [[]], "outcomes": [1]}}),
    *[
        ("get", "/v1/models/{model}/quality", f"/v1/models/{name}", {})
        for name in ("wine/quality", "wine/quality?by=hour&version=1", "wine/quality?by=week", "none/quality")
    ],
    ("post", "/v1/models/{model}:predict", "/v1/models/wine:predict", {"json": {"instances": "WINE"}}),
    ("post", "/v1/models/{model}:predict", "/v1/models/none:predict", {"json": {"instances": "WINE"}}),
    ("post", "/v1/models/{model}:explain", "/v1/models/wine:explain", {"json": {"instances": "WINE"}}),
    ("post", "/v1/models/{model}:explain", "/v1/models/wine:explain", {"json": {"instances": []}}),
    ("get", "/ping", "/ping", {}),
    ("get", "/version", "/version", {}),
    *[
        ("post", f"/{kind}/{{model}}/invocations", f"/{kind}/{model}/invocations", {"json": {"instances": "WINE"}})
        for kind in ("endpoints", "serving-endpoints")
        for model in ("wine", "none")
    ],
    ("post", "/invocations", "/invocations", {"json": {"instances": "WINE"}}),
    ("post", "/invocations", "/invocations", {"json": {}}),
    ("post", "/score", "/score", {"content": b"{"}),
    ("post", "/v1/jobs", "/v1/jobs", {"json": {"operation": "predict", "model": "wine", "instances": [[]]}}),
    ("post", "/v1/jobs", "/v1/jobs", {"json": {"operation": "predict", "model": "none", "instances": [[]]}}),
    ("get", JOBS, "/v1/jobs/none", {}),
    ("delete", JOBS, "/v1/jobs/none", {}),
    ("get", f"{JOBS}/result", "/v1/jobs/none/result", {}),
    ("get", f"{JOBS}/events", "/v1/jobs/none/events", {}),
    ("post", "/api/admin/models:reload", "/api/admin/models:reload", {}),
    ("post", "/api/admin/models/{model}:rollback", "/api/admin/models/none:rollback", {}),
    (
        "post",
        "/api/admin/models/{model}/versions/{version}:promote",
        "/api/admin/models/wine/versions/none:promote",
        {},
    ),
    ("post", "/api/admin/models/{model}:train", "/api/admin/models/none:train", {}),
    *(
        ("post", f"/api/admin/{path}:{verb}", f"/api/admin/{place}:{verb}", {"headers": ADMIN})
        for path, place, verb in (
            ("workers/{pid}", "workers/1", "drain"),
            ("schedules/{name}", "schedules/none", "pause"),
            ("schedules/{name}", "schedules/none", "resume"),
        )
    ),
    ("get", "/api/admin/log", "/api/admin/log", {"headers": ADMIN}),
    ("get", "/api/admin/metrics", "/api/admin/metrics", {}),
    ("get", "/api/admin/metrics", "/api/admin/metrics", {"headers": ADMIN}),
    ("get", "/metrics", "/metrics", {"headers": ADMIN}),
]


def test_every_answer_of_the_service_is_as_the_document_says(client: httpx.Client, document: dict[str, Any]) -> None:
    example = client.get("/v1/models/wine").json()["example"]
    for method, path, sent_to, given in ASKED:
        if method not in document["paths"].get(path, {}):
            continue
        options = dict(given)
        if options.get("json", {}).get("instances") == "WINE":
            options["json"] = options["json"] | {"instances": [example]}
        if "content" in options:
            options["headers"] = {"content-type": "application/json"}
        check_answer(document, method, path, client.request(method, sent_to, **options))


def test_a_job_is_what_the_document_says_from_its_beginning_to_its_result(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    example = client.get("/v1/models/wine").json()["example"]
    body = {"operation": "predict", "model": "wine", "instances": [example] * 3}
    submitted = client.post("/v1/jobs", json=body)
    assert submitted.status_code == 202
    check_answer(document, "post", "/v1/jobs", submitted)
    place = submitted.headers["location"]
    check_answer(document, "get", f"{JOBS}/events", client.get(f"{place}/events"))  # ends with the job
    for kind in ("application/json", "text/csv"):
        result = client.get(f"{place}/result", headers={"accept": kind})
        assert result.status_code == 200
        check_answer(document, "get", f"{JOBS}/result", result)
    check_answer(document, "get", JOBS, client.get(place))
    check_answer(document, "delete", JOBS, client.delete(place))


def test_entity_predictions_are_what_the_document_says(client: httpx.Client, document: dict[str, Any]) -> None:
    model = next(model for model in client.get("/v1/models").json()["models"] if model["entities"])
    example = client.get(f"/v1/models/{model['name']}").json()["example"]
    client.post("/v1/entities/documented-too/records", json={"values": example})
    answer = client.get(f"/v1/entities/documented-too/predictions?models={model['name']}&explain=true")
    assert answer.status_code == 200
    check_answer(document, "get", PREDICTIONS, answer)
