"""The OpenAPI document: FastAPI's own routes, and one typed operation for every model, made from its features."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from registry.model import LoadedModel
from registry.registry import Registry
from serving.http.routes.predict import ANSWERS, is_for_jobs
from serving.predict.operation import Verb

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
    "429": "Too many requests from this address, or too many jobs",
    "504": "The deadline passed",
}


def document(app: FastAPI, registry: Registry, *, background: bool) -> dict[str, Any]:
    """The whole OpenAPI 3.1 document; with `background` for a service where what takes longer goes on as a job."""
    openapi = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    openapi.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    for model in registry.live():
        add_operations(openapi["paths"], f"/v1/models/{model.name}", model, background=background)
    for model in registry:
        path = f"/v1/models/{model.name}/versions/{model.version}"
        add_operations(openapi["paths"], path, model, f"_version_{model.version}", background=background)
    return openapi


def add_operations(paths: dict[str, Any], path: str, model: LoadedModel, suffix: str = "", *, background: bool) -> None:
    """What can be asked of one model under `path`."""
    summaries: dict[Verb, str] = {"predict": f"Predict with {model.name} ({model.manifest.estimator})"}
    if model.explainer is not None:
        how = f"{model.explainer.method}, in {model.explainer.space} space"
        summaries["explain"] = f"Explain what {model.name} predicts ({how})"
    for verb, summary in summaries.items():
        if answers := answers_of(model, verb, background=background):
            paths[f"{path}:{verb}"] = {"post": operation(model, verb, summary, suffix, answers)}


def answers_of(model: LoadedModel, verb: Verb, *, background: bool) -> dict[str, Any]:
    """By status, all but the refusals; none for what only jobs can do where a request becomes no job."""
    later = {"202": {"description": "It takes too long and goes on as a job, whose address is in Location"}}
    if verb == "explain" and is_for_jobs(model):
        return later if background else {}
    whole = {
        "200": {
            "description": f"One {ANSWERS[verb].removesuffix('s')} for every instance, in order",
            "content": {
                "application/json": {"schema": response_schema(model, verb)},
                # an event for each, then `done`
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    }
    return whole | later if background else whole


def operation(model: LoadedModel, verb: Verb, summary: str, suffix: str, answers: dict[str, Any]) -> dict[str, Any]:
    """One typed operation; `answers` are those besides refusals."""
    return {
        "tags": [verb],
        "operationId": f"{verb}_{model.name}{suffix}",
        "summary": summary,
        "parameters": [
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "description": "Seconds; may shorten the deadline, never lengthen it",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(model)}}},
        "responses": answers | {status: _refusal(description) for status, description in REFUSALS.items()},
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
            "parameters": parameters_schema(model),
        },
        "required": ["instances"],
        "additionalProperties": False,
        "example": {"instances": [model.manifest.example]},
    }


def parameters_schema(model: LoadedModel) -> dict[str, Any]:
    """What an explanation shows; predictions show everything anyway."""
    some = {"type": "array", "minItems": 1, "items": {"enum": list(model.manifest.classes)}}
    classes = [{"enum": ["predicted", "all"]}, *([some] if model.manifest.classes else [])]
    return {
        "type": "object",
        "properties": {
            "classes": {"anyOf": classes, "default": "predicted"},
            "top": {"type": "integer", "minimum": 1, "description": "Only the largest; the rest as `(other)`"},
        },
        "additionalProperties": False,
    }


def response_schema(model: LoadedModel, verb: Verb) -> dict[str, Any]:
    """The answer of one model."""
    item = prediction_schema(model) if verb == "predict" else explanation_schema(model)
    return {
        "type": "object",
        "properties": {
            "model": {"const": model.name},
            "version": {"const": model.version},
            ANSWERS[verb]: {"type": "array", "items": item},
            "fallback": {"type": "boolean"},
        },
        "required": ["model", "version", ANSWERS[verb]],
    }


def explanation_schema(model: LoadedModel) -> dict[str, Any]:
    """One explanation; for several classes, output, base value and values stand under each class."""
    assert model.explainer is not None
    numbers: dict[str, Any] = {
        "output": {"type": "number"},
        "base_value": {"type": "number"},
        "values": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    properties: dict[str, Any] = numbers | {
        "space": {"const": model.explainer.space},
        "method": {"const": model.explainer.method},
    }
    classes = list(model.manifest.classes)
    if classes:
        properties["label"] = {"enum": classes}
        each = {"type": "object", "properties": numbers, "required": list(numbers)}
        properties["classes"] = {"type": "object", "properties": dict.fromkeys(classes, each)}
    return {"type": "object", "properties": properties, "required": ["space", "method"]}


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
