"""What the OpenAPI document says about the routes: their names, bodies, answers and refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.http.schemas import (
    ANYTHING,
    AZURE_TABLES,
    BOOLEAN,
    CANARY,
    CARD,
    COUNT,
    CSV,
    DELETED,
    DRAINING,
    DRIFT,
    DRY_RUN,
    ENTITIES,
    ENTITY_PREDICTIONS,
    EVENTS,
    HEALTH,
    IMPORTANCE,
    INTEGER,
    JOB,
    JOB_BODY,
    JSON,
    LOCATION,
    LOG_DELETED,
    LOG_EXPLAINED,
    LOG_OF_REQUEST,
    LOG_PAGE,
    LOGGED,
    MARKDOWN,
    METADATA,
    METHOD,
    METRICS,
    MLFLOW_TABLES,
    MODEL,
    MODELS,
    NUMBER,
    OUTCOMES_ACCEPTED,
    OUTCOMES_STORED,
    QUALITY,
    READ_AS_TEXT,
    RECORDS,
    RELOADED,
    RESULT,
    SCHEDULE,
    SHADOW,
    STATUS,
    STORED,
    STRING,
    SVG,
    TABLES,
    TEXT,
    TIMEOUT_HEADER,
    Schema,
    array_of,
    inference_schemas,
    object_schema,
)
from serving.jobs.rows import OPERATIONS
from serving.predict.operation import ANSWERS, Verb

REFUSALS = {
    "400": "Not JSON, not UTF-8, or nested too deeply; or an invalid header",
    "404": "There is nothing of that name",
    "409": "Not in this state; the problem says which",
    "413": "Too many bytes, instances or rows",
    "415": "Another media type or encoding than those that are taken",
    "422": "What was sent does not fit; the problem names each fault",
    "429": "Too many requests, or too many jobs that wait; see Retry-After",
    "501": "This service does not preload its models, and cannot reload them",
    "503": "Overloaded, draining, or a store is unavailable; see Retry-After",
    "504": "The deadline passed",
    "507": "As many records are kept as may be; entities that have some may get newer ones",
}

INFERENCE = re.compile(r"/v1/models/.*:(?:predict|explain)")

BODY = ("400", "413", "415", "422")
"""The refusals of routes that take a body."""


@dataclass(frozen=True)
class Said:
    """What the document says about a route beside what its function says.

    `answers` are schemas by status and media type; `refusals` are statuses; `body` are schemas by media type.
    """

    name: str
    answers: Mapping[str, Mapping[str, Schema]]
    refusals: tuple[str, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    parameters: tuple[Schema, ...] = ()
    summary: str = ""
    """Of a route that FastAPI does not serve."""


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": "For a body that is not JSON", "schema": schema}


SELECTION_QUERY = (
    _query("classes", STRING),
    _query("top", COUNT),
    _query("space", {"enum": ["probability", "margin", "value"]}),
    _query("coverage", NUMBER | {"exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    _query("interactions", BOOLEAN),
)


def _inference(verb: Verb, name: str) -> Said:
    body, answer = inference_schemas(verb)
    answers = {"200": {JSON: answer, EVENTS: STRING, **TABLES}, "202": {JSON: JOB}}
    parameters = (TIMEOUT_HEADER, *SELECTION_QUERY)
    return Said(name, answers, (*BODY, "404", "503", "504"), {JSON: body, **TABLES}, parameters)


KEY = STRING | {"pattern": "^[!-~]{1,255}$"}
JOB_QUERY = (
    _query("operation", {"enum": list(OPERATIONS)}),
    _query("model", STRING),
    _query("version", STRING),
    *SELECTION_QUERY,
    {
        "name": "dry_run",
        "in": "query",
        "description": "`true` checks the rows and estimates the time (200), without a job",
        "schema": BOOLEAN | {"default": False},
    },
    {"name": "Idempotency-Key", "in": "header", "description": "Sent twice, it is one job", "schema": KEY},
)


def _scoring(name: str, summary: str, tables: Mapping[str, Schema] = MLFLOW_TABLES) -> Said:
    """A route of MLflow's protocol: a body has one of these tables."""
    members = {**tables, "params": {"anyOf": [METHOD, {"type": "null"}]}}
    body = object_schema(members, [], oneOf=[{"required": [table]} for table in tables])
    twins = {"Results": array_of(ANYTHING)} if tables is not MLFLOW_TABLES else {}
    answer = object_schema({"predictions": array_of(ANYTHING)} | twins, ["predictions"])
    return Said(
        name,
        {"200": {JSON: answer, CSV: STRING}},
        (*BODY, "404", "503", "504"),
        {JSON: body, CSV: STRING},
        (TIMEOUT_HEADER,),
        summary,
    )


SHOWN_IMPORTANCE: Any = (
    {"200": {JSON: IMPORTANCE, SVG: STRING}},
    ("404", "422", "503", "504"),
    {},
    tuple(
        {"name": name, "in": "query", "description": description, "schema": schema}
        for name, description, schema in (
            ("space", "The outputs that are explained", STRING),
            ("classes", "`all`, or classes: named once each", array_of(STRING)),
            ("top", "Only the largest; the rest as `(other)`", INTEGER | {"minimum": 1}),
            ("interactions", "Pairs of features, too", BOOLEAN),
            ("feature", "A feature whose dependence is told apart by another", STRING),
            ("by", "That other feature", STRING),
        )
    ),
)

ROUTES: Mapping[tuple[str, str], Said] = {
    ("get", "/ping"): Said("ping", {"200": {JSON: object_schema({"status": STRING})}}, ("404", "503")),
    ("get", "/version"): Said("version", {"200": {TEXT: STRING}}),
    ("post", "/invocations"): _scoring("invocations", "Predict with the default model, as MLflow and SageMaker do"),
    ("post", "/endpoints/{model}/invocations"): _scoring("endpoint_invocations", "Predict as MLflow's deployments do"),
    ("post", "/serving-endpoints/{model}/invocations"): _scoring(
        "serving_endpoint_invocations", "Predict as Databricks does"
    ),
    ("post", "/score"): _scoring(
        "score", "Predict with the default model, as Azure ML does", {**MLFLOW_TABLES, **AZURE_TABLES}
    ),
    ("get", "/v1/models"): Said("list_models", {"200": {JSON: MODELS}}, ("422",)),
    ("get", "/v1/models/{model}"): Said("show_model", {"200": {JSON: MODEL}}, ("404", "503")),
    ("get", "/v1/models/{model}/versions/{version}"): Said("show_version", {"200": {JSON: MODEL}}, ("404", "503")),
    ("get", "/v1/models/{model}/importance"): Said("show_importance", *SHOWN_IMPORTANCE),
    ("get", "/v1/models/{model}/versions/{version}/importance"): Said("show_version_importance", *SHOWN_IMPORTANCE),
    ("get", "/v1/models/{model}/card"): Said("show_card", {"200": {JSON: CARD, MARKDOWN: STRING}}, ("404", "503")),
    ("get", "/v1/models/{model}/versions/{version}/card"): Said(
        "show_version_card", {"200": {JSON: CARD, MARKDOWN: STRING}}, ("404", "503")
    ),
    ("get", "/v1/models/{model}/drift"): Said("show_drift", {"200": {JSON: DRIFT}}, ("404", "422", "503")),
    ("get", "/v1/models/{model}/metadata"): Said("show_metadata", {"200": {JSON: METADATA}}, ("404", "503")),
    ("get", "/v1/models/{model}/versions/{version}/metadata"): Said(
        "show_version_metadata", {"200": {JSON: METADATA}}, ("404", "503")
    ),
    ("get", "/v1/models/{model}/quality"): Said("show_quality", {"200": {JSON: QUALITY}}, ("404", "422", "503")),
    ("post", "/v1/models/{model}/outcomes"): Said(
        "store_outcomes",
        {
            "200": {JSON: OUTCOMES_STORED},
            "201": {JSON: OUTCOMES_STORED},
            "202": {JSON: OUTCOMES_ACCEPTED},
        },
        (*BODY, "404", "503"),
    ),
    ("get", "/health"): Said("health", {"200": {JSON: HEALTH}}),
    ("get", "/health/live"): Said("live", {"200": {JSON: STATUS}}),
    ("get", "/health/ready"): Said("ready", {"200": {JSON: STATUS}}),
    ("post", "/v1/entities/{entity}/records"): Said(
        "store_records", {"200": {JSON: STORED}, "201": {JSON: STORED}}, (*BODY, "404", "503", "507")
    ),
    ("get", "/v1/entities/{entity}/predictions"): Said(
        "entity_predictions", {"200": {JSON: ENTITY_PREDICTIONS}}, ("400", "404", "422", "503", "504")
    ),
    ("get", "/v1/entities/{entity}/events"): Said("follow_entity", {"200": {EVENTS: STRING}}, ("422", "503")),
    ("get", "/v1/entities"): Said("list_entities", {"200": {JSON: ENTITIES}}, ("422", "503")),
    ("delete", "/v1/entities/{entity}"): Said("delete_entity", {"200": {JSON: DELETED}}, ("404", "422", "503")),
    ("get", "/v1/entities/{entity}/records"): Said("list_records", {"200": {JSON: RECORDS}}, ("404", "422", "503")),
    ("delete", "/v1/entities/{entity}/records"): Said(
        "delete_records", {"200": {JSON: DELETED}}, ("404", "422", "503")
    ),
    ("get", "/v1/predictions"): Said("list_predictions", {"200": {JSON: LOG_PAGE}}, ("422", "503")),
    ("get", "/v1/predictions/{request_id}"): Said("show_prediction", {"200": {JSON: LOG_OF_REQUEST}}, ("404", "503")),
    ("post", "/v1/predictions/{request_id}:explain"): Said(
        "explain_prediction", {"200": {JSON: LOG_EXPLAINED}}, ("404", "413", "422", "503", "504")
    ),
    ("delete", "/v1/predictions/{request_id}"): Said("delete_prediction", {"200": {JSON: LOG_DELETED}}, ("404", "503")),
    ("post", "/v1/jobs"): Said(
        "submit_job",
        {"200": {JSON: DRY_RUN}, "202": {JSON: JOB}},
        (*BODY, "404", "503"),
        {JSON: JOB_BODY, CSV: STRING, **TABLES},
        JOB_QUERY,
    ),
    ("get", "/v1/jobs/{job_id}"): Said("show_job", {"200": {JSON: JOB}}, ("404", "503")),
    ("delete", "/v1/jobs/{job_id}"): Said("cancel_job", {"200": {JSON: JOB}}, ("404", "503")),
    ("get", "/v1/jobs/{job_id}/result"): Said(
        "job_result", {"200": {JSON: RESULT, CSV: STRING, SVG: STRING, **TABLES}}, ("404", "409", "503")
    ),
    ("get", "/v1/jobs/{job_id}/events"): Said("follow_job", {"200": {EVENTS: STRING}}, ("404", "422", "503")),
    ("post", "/api/admin/models:reload"): Said(
        "reload_models", {"200": {JSON: RELOADED}, "202": {JSON: RELOADED}}, ("409", "501")
    ),
    ("post", "/api/admin/models/{model}:rollback"): Said(
        "roll_back_model", {"200": {JSON: RELOADED}, "202": {JSON: RELOADED}}, ("404", "409", "501", "503")
    ),
    ("post", "/api/admin/models/{model}/versions/{version}:promote"): Said(
        "promote_version", {"200": {JSON: RELOADED}, "202": {JSON: RELOADED}}, ("404", "409", "501", "503")
    ),
    ("get", "/v1/models/{model}/canary"): Said("show_canary", {"200": {JSON: CANARY}}, ("404", "503")),
    ("get", "/v1/models/{model}/shadow"): Said("show_shadow", {"200": {JSON: SHADOW}}, ("404", "503")),
    ("post", "/api/admin/models/{model}/versions/{version}:shadow"): Said(
        "begin_shadow", {"200": {JSON: RELOADED}, "202": {JSON: RELOADED}}, (*BODY, "404", "409", "501", "503")
    ),
    ("post", "/api/admin/models/{model}/versions/{version}:canary"): Said(
        "begin_canary", {"200": {JSON: RELOADED}, "202": {JSON: RELOADED}}, (*BODY, "404", "409", "501", "503")
    ),
    ("post", "/api/admin/models/{model}:train"): Said("train_model", {"202": {JSON: JOB}}, ("404", "409", "503")),
    ("post", "/api/admin/workers/{pid}:drain"): Said("drain_worker", {"202": {JSON: DRAINING}}, ("404",)),
    ("post", "/api/admin/schedules/{name}:pause"): Said("pause_schedule", {"200": {JSON: SCHEDULE}}, ("404", "503")),
    ("post", "/api/admin/schedules/{name}:resume"): Said("resume_schedule", {"200": {JSON: SCHEDULE}}, ("404", "503")),
    ("get", "/api/admin/log"): Said("show_log", {"200": {JSON: LOGGED}}),
    ("get", "/api/admin/metrics"): Said("metrics", {"200": {JSON: METRICS}}),
    ("get", "/api/admin/events"): Said("follow_metrics", {"200": {EVENTS: STRING}}, ("503",)),
    ("get", "/metrics"): Said("prometheus_metrics", {"200": {TEXT: STRING}}),
    ("post", "/v1/models/{model}:predict"): _inference("predict", "predict"),
    ("post", "/v1/models/{model}:explain"): _inference("explain", "explain"),
    ("post", "/v1/models/{model}/versions/{version}:predict"): _inference("predict", "versioned_predict"),
    ("post", "/v1/models/{model}/versions/{version}:explain"): _inference("explain", "versioned_explain"),
}


def describe_routes(document: Schema, routes: Mapping[tuple[str, str], Said], *, background: bool) -> None:
    """Complete what FastAPI has written about the routes, and add those that it does not serve.

    With `background`, requests that take too long become jobs.
    """
    paths = document["paths"]
    for (method, path), said in routes.items():
        if INFERENCE.fullmatch(path):
            paths.setdefault(path, {})[method] = _bare_inference(path)
        elif said.summary:
            paths.setdefault(path, {})[method] = _bare_operation(path, said.summary)
    for path, item in paths.items():
        for method, operation in item.items():
            # FastAPI writes a refusal of its own, which never comes
            operation["responses"].pop("422", None)
            if known := routes.get((method, path)):
                _describe(operation, known)
            if INFERENCE.fullmatch(path) and not background:
                del operation["responses"]["202"]
            if not path.startswith(("/health", "/ping", "/v2/health")):
                operation["responses"]["429"] = refusal(REFUSALS["429"])
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _bare_inference(path: str) -> Schema:
    verb = path.rpartition(":")[2]
    names = ("model", "version") if "{version}" in path else ("model",)
    return {
        "tags": [verb],
        "summary": f"{verb.capitalize()} with any model",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": STRING} for name in names],
        "responses": {
            "200": {"description": f"One {ANSWERS[verb].removesuffix('s')} for every instance, in order"},
            "202": {"description": "It takes too long and continues as a job", "headers": LOCATION},
        },
    }


def _bare_operation(path: str, summary: str) -> Schema:
    names = re.findall(r"{(\w+)}", path)
    return {
        "tags": ["predict"],
        "summary": summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": STRING} for name in names],
        "responses": {},
    }


def _describe(operation: Schema, said: Said) -> None:
    operation["operationId"] = said.name
    responses = operation["responses"]
    for status, content in said.answers.items():
        responses.setdefault(status, {}).setdefault("description", "Successful Response")
        responses[status]["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
        if content == {JSON: JOB} and status == "202":
            responses[status]["headers"] = LOCATION
    responses |= {status: refusal(REFUSALS[status]) for status in said.refusals}
    if said.body:
        content = {kind: {"schema": schema} for kind, schema in said.body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    for parameter in operation.get("parameters", ()):
        if schema := READ_AS_TEXT.get(parameter["name"].lower()):
            parameter["schema"] = schema
    if said.parameters:
        operation.setdefault("parameters", []).extend(said.parameters)


def refusal(description: str) -> Schema:
    """The response of a refusal."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def complete_schemas(value: Any) -> None:
    """Say in a document what generators of clients want to be told, although JSON Schema has it as the default.

    Without its `items`, they leave the operation of an array out; an object without members is to them always empty.
    """
    for schema in _objects(value):
        kinds = schema.get("type", ())
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if "array" in kinds:
            schema.setdefault("items", {})
        if "object" in kinds and not schema.get("properties"):
            schema.setdefault("additionalProperties", True)


def _objects(value: Any) -> Iterator[Schema]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
