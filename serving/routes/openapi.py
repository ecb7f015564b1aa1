"""The OpenAPI document: FastAPI's own routes, and one typed operation for every model, made from its features."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from registry.model import LoadedModel
from registry.registry import Registry

PROBLEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {
                    "instance": {"type": "integer"},
                    "feature": {"type": ["string", "null"]},
                    "reason": {"type": "string"},
                },
            },
        },
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}

REFUSALS = {
    "400": "Not JSON, not UTF-8, or nested too deep",
    "404": "No such model or version",
    "413": "Too many bytes or instances",
    "415": "Not application/json, or encoded",
    "422": "The instances do not fit the features",
    "504": "The deadline passed",
}


def document(app: FastAPI, registry: Registry) -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    openapi = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    openapi.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    for model in registry.live():
        openapi["paths"][f"/v1/models/{model.name}:predict"] = {"post": predict_operation(model)}
    for model in registry:
        path = f"/v1/models/{model.name}/versions/{model.version}:predict"
        openapi["paths"][path] = {"post": predict_operation(model, f"_version_{model.version}")}
    return openapi


def predict_operation(model: LoadedModel, suffix: str = "") -> dict[str, Any]:
    """The typed operation that predicts with one model."""
    return {
        "tags": ["predict"],
        "operationId": f"predict_{model.name}{suffix}",
        "summary": f"Predict with {model.name} ({model.manifest.estimator})",
        "parameters": [
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "description": "Seconds; may shorten the deadline, never lengthen it",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(model)}}},
        "responses": {
            "200": {
                "description": "One prediction for every instance, in order",
                "content": {"application/json": {"schema": response_schema(model)}},
            }
        }
        | {status: _refusal(description) for status, description in REFUSALS.items()},
    }


def _refusal(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def request_schema(model: LoadedModel) -> dict[str, Any]:
    """Instances by name or by position, not both in one request."""
    forms = [model.schema.object_schema, model.schema.array_schema]
    return {
        "type": "object",
        "properties": {
            "instances": {"oneOf": [{"type": "array", "minItems": 1, "items": form} for form in forms]},
            "parameters": {"type": "object"},
        },
        "required": ["instances"],
        "additionalProperties": False,
        "example": {"instances": [model.manifest.example]},
    }


def response_schema(model: LoadedModel) -> dict[str, Any]:
    """The answer of one model."""
    return {
        "type": "object",
        "properties": {
            "model": {"const": model.name},
            "version": {"const": model.version},
            "predictions": {"type": "array", "items": prediction_schema(model)},
            "fallback": {"type": "boolean"},
        },
        "required": ["model", "version", "predictions"],
    }


def prediction_schema(model: LoadedModel) -> dict[str, Any]:
    """One prediction: a number, or a label with the probability of every class where the model knows it."""
    classes = list(model.manifest.classes)
    if model.manifest.task == "regression":
        return {"type": "number"}
    properties: dict[str, Any] = {"label": {"enum": classes} if classes else {"type": "integer"}}
    if len(model.manifest.baseline) >= len(classes) > 0:
        share = {"type": "number", "minimum": 0, "maximum": 1}
        properties["probabilities"] = {
            "type": "object",
            "properties": dict.fromkeys(classes, share),
            "required": classes,
        }
    return {"type": "object", "properties": properties, "required": list(properties)}
