"""What the OpenAPI document says about the routes of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.http import problems
from serving.http.openapi import BODY, Said
from serving.http.protocols.tensors import DATATYPES
from serving.http.schemas import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    JSON,
    OBJECT,
    STRING,
    TIMEOUT_HEADER,
    Schema,
    array_of,
    object_schema,
)

BINARY = "application/octet-stream"
BYTES: Schema = STRING | {"format": "binary"}
LENGTH_HEADER: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "The bytes of JSON before the binary data",
    "schema": INTEGER | {"minimum": 0},
}
PARAMETERS: Schema = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}
HEAD: Schema = {"name": STRING, "shape": array_of(INTEGER), "datatype": {"enum": list(DATATYPES)}}
TENSOR = object_schema({**HEAD, "parameters": PARAMETERS, "data": array_of(ANYTHING)}, list(HEAD))
REQUEST = object_schema(
    {
        "id": {"type": ["string", "null"]},
        "parameters": PARAMETERS,
        "inputs": array_of(TENSOR, minItems=1),
        "outputs": {
            "type": ["array", "null"],
            "items": object_schema({"name": STRING, "parameters": PARAMETERS}, ["name"]),
        },
    },
    ["inputs"],
)
RESPONSE = object_schema(
    {"model_name": STRING, "model_version": STRING, "id": STRING, "parameters": OBJECT, "outputs": array_of(TENSOR)},
    ["model_name", "model_version", "outputs"],
)
METADATA = object_schema(
    {
        "name": STRING,
        "versions": array_of(STRING),
        "platform": STRING,
        "inputs": array_of(object_schema(HEAD)),
        "outputs": array_of(object_schema(HEAD)),
    }
)
CONFIG_TENSOR = object_schema({"name": STRING, "data_type": STRING, "dims": array_of(INTEGER)})
CONFIG = object_schema(
    {
        "name": STRING,
        "platform": STRING,
        "backend": STRING,
        "max_batch_size": INTEGER,
        "input": array_of(CONFIG_TENSOR),
        "output": array_of(CONFIG_TENSOR),
    }
)
STATS = object_schema(
    {
        "model_stats": array_of(
            object_schema(
                {"name": STRING, "version": STRING, "inference_count": INTEGER, "execution_count": INTEGER},
            )
        )
    }
)
INDEX = array_of(object_schema({"name": STRING, "version": STRING, "state": STRING, "reason": STRING}))
READY = object_schema({"name": STRING, "ready": BOOLEAN})


def _infer(name: str, summary: str) -> Said:
    return Said(
        name,
        {"200": {JSON: RESPONSE, BINARY: BYTES}},
        (*(status for status in BODY if status != "422"), "404", "503", "504"),
        {JSON: REQUEST, BINARY: BYTES},
        (TIMEOUT_HEADER, LENGTH_HEADER),
        summary,
    )


def _of_model(rest: str, name: str, schema: Schema) -> Mapping[tuple[str, str], Said]:
    """A route of the live version and of any."""
    return {
        ("get", f"/v2/models/{{model}}{rest}"): Said(f"v2_{name}", {"200": {JSON: schema}}, ("404", "503")),
        ("get", f"/v2/models/{{model}}/versions/{{version}}{rest}"): Said(
            f"v2_version_{name}", {"200": {JSON: schema}}, ("404", "503")
        ),
    }


V2_ROUTES: Mapping[tuple[str, str], Said] = {
    ("get", "/v2"): Said(
        "v2_server",
        {"200": {JSON: object_schema({"name": STRING, "version": STRING, "extensions": array_of(STRING)})}},
    ),
    ("get", "/v2/health/live"): Said("v2_live", {"200": {JSON: object_schema({"live": BOOLEAN})}}),
    ("get", "/v2/health/ready"): Said("v2_ready", {"200": {JSON: object_schema({"ready": BOOLEAN})}}),
    ("post", "/v2/repository/index"): Said(
        "v2_repository_index", {"200": {JSON: INDEX}}, body={JSON: object_schema({"ready": BOOLEAN}, [])}
    ),
    ("get", "/v2/models/stats"): Said("v2_statistics", {"200": {JSON: STATS}}),
    **_of_model("", "metadata", METADATA),
    **_of_model("/ready", "model_ready", READY),
    **_of_model("/config", "config", CONFIG),
    **_of_model("/stats", "model_statistics", STATS),
    ("post", "/v2/models/{model}/infer"): _infer("v2_infer", "Predict with tensors"),
    ("post", "/v2/models/{model}/versions/{version}/infer"): _infer("v2_version_infer", "Predict with tensors"),
}

ERROR: Schema = object_schema({"error": STRING})


def restate_refusals(document: dict[str, Any]) -> None:
    """Describe the refusals of each path in the form that they have there."""
    for path, item in document["paths"].items():
        if problems.form_of(path) is problems.ERROR:
            for operation in item.values():
                for answer in operation["responses"].values():
                    if problems.CONTENT_TYPE.decode() in answer.get("content", ()):
                        answer["content"] = {JSON: {"schema": ERROR}}
