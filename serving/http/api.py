"""The FastAPI app of all routes but predictions, and its OpenAPI document with one typed operation per model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache, lru_cache, partial
from http import HTTPStatus

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from registry.model import LoadedModel
from registry.outputs import Layout, Target
from registry.registry import Registry
from serving.entities.outcomes import OutcomesBody
from serving.errors import RouteNotFound
from serving.http import problems
from serving.http.keys import Keys, describe_security, visible_paths
from serving.http.openapi import REFUSALS, ROUTES, complete_schemas, describe_routes, refusal
from serving.http.pages.page import wants_html
from serving.http.problems import Problem
from serving.http.protocols.mlflow import mlflow_router
from serving.http.protocols.v2_openapi import V2_ROUTES, restate_refusals
from serving.http.protocols.v2_routes import v2_router
from serving.http.representation import CACHED_BY_CLIENTS
from serving.http.routes.admin import admin_router
from serving.http.routes.card import card_router
from serving.http.routes.drift import drift_router
from serving.http.routes.entities import RecordsBody, entities_router
from serving.http.routes.health import health_router
from serving.http.routes.importance import importance_router
from serving.http.routes.jobs import jobs_router
from serving.http.routes.models import models_router
from serving.http.routes.outcomes import outcomes_router
from serving.http.routes.predict import is_for_jobs
from serving.http.routes.predictions import predictions_router
from serving.http.routes.quality import quality_router
from serving.http.routes.rollout import CanaryBody, ShadowBody, rollout_router
from serving.http.schemas import (
    BOOLEAN,
    JOB,
    JSON,
    LOCATION,
    MAYBE_STRING,
    NUMBER,
    STRING,
    TIMEOUT_HEADER,
    TOP,
    Schema,
    array_of,
    instances_of,
    object_schema,
)
from serving.http.sse import Streams
from serving.http.views import Views
from serving.predict.operation import ANSWERS, Verb
from serving.service import Service

MODEL_REFUSALS = ("400", "404", "413", "415", "422", "429", "503", "504")

SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}

BODIES = (RecordsBody, OutcomesBody, CanaryBody, ShadowBody, Problem)
"""The bodies that operations refer to: those of requests, and that of refusals."""

COVERAGE: Schema = {
    "type": ["number", "null"],
    "exclusiveMinimum": 0,
    "exclusiveMaximum": 1,
    "description": "For predictions: the share of true values that an interval, or a set of labels, shall hold",
}


def document(app: FastAPI, registry: Registry, *, background: bool, show_examples: bool) -> Schema:
    """The whole OpenAPI 3.1 document; with `background`, requests that take too long become jobs."""
    openapi = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, bodies = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    openapi.setdefault("components", {}).setdefault("schemas", {}).update(bodies)
    describe_routes(openapi, {**ROUTES, **V2_ROUTES}, background=background)
    for model in registry.live():
        openapi["paths"] |= _operations(model, "", "", background=background, show_examples=show_examples)
    for model in registry:
        openapi["paths"] |= _operations(
            model,
            f"/versions/{model.version}",
            f"_version_{model.version}",
            background=background,
            show_examples=show_examples,
        )
    complete_schemas(openapi["paths"])
    complete_schemas(openapi["components"])
    return openapi


def _operations(model: LoadedModel, path: str, suffix: str, *, background: bool, show_examples: bool) -> Schema:
    """The operations of one model, by path."""
    example = {"example": {"instances": [model.example]}} if show_examples else {}
    summaries: dict[Verb, str] = {"predict": f"Predict with {model.name} ({model.manifest.estimator})"}
    if model.explainer is not None:
        how = f"{model.explainer.method}, in {model.explainer.space} space"
        summaries["explain"] = f"Explain what {model.name} predicts ({how})"
    return {
        f"/v1/models/{model.name}{path}:{verb}": {
            "post": {
                "tags": [verb],
                "operationId": f"{verb}_{model.name}{suffix}",
                "summary": summary,
                "parameters": [TIMEOUT_HEADER],
                "requestBody": {"required": True, "content": {JSON: {"schema": _request(model, verb) | example}}},
                "responses": answers
                | {status: refusal(reason) for status, reason in REFUSALS.items() if status in MODEL_REFUSALS},
            }
        }
        for verb, summary in summaries.items()
        if (answers := _answers(model, verb, background=background))
    }


def _answers(model: LoadedModel, verb: Verb, *, background: bool) -> Schema:
    """The answers by status, without refusals; empty for what only jobs can do where a request becomes no job."""
    content = {"application/json": {"schema": JOB}}
    later = {
        "202": {"description": "It takes too long and continues as a job", "headers": LOCATION, "content": content}
    }
    if verb == "explain" and is_for_jobs(model):
        return later if background else {}
    forms: Schema = {
        "application/json": {"schema": _response(model, verb)},
        "text/event-stream": {"schema": STRING},  # an event for each, then `done`
    }
    if verb == "explain":
        forms["image/svg+xml"] = {"schema": STRING}  # the waterfall of one instance
    described = f"One {ANSWERS[verb].removesuffix('s')} for every instance, in order"
    whole = {"200": {"description": described, "content": forms}}
    return whole | later if background else whole


def _request(model: LoadedModel, verb: Verb) -> Schema:
    """Instances by name or by position; parameters only matter for explanations."""
    forms = [model.instance_schema, model.schema.array_schema]
    # a class is named once, either way
    kinds = [model.labels.classes, *([] if model.labels.classes == model.labels.texts else [model.labels.texts])]
    some = [array_of({"enum": list(kind)}, minItems=1, uniqueItems=True) for kind in kinds if kind]
    parameters = {
        "classes": {"anyOf": [{"enum": ["predicted", "all"]}, *some], "default": "predicted"},
        "top": TOP | {"description": "Only the largest; the rest as `(other)`"},
    }
    if model.explainer is not None:
        described = "The outputs that are explained"
        parameters["space"] = {
            "enum": [*model.spaces, None],
            "default": model.explainer.space,
            "description": described,
        }
        if any(explainer.interact is not None for explainer in (model.explainer, *model.other_explainers.values())):
            parameters["interactions"] = BOOLEAN | {"default": False, "description": "Pairs of features, too"}
    if model.manifest.conformal and verb == "predict":
        parameters["coverage"] = COVERAGE
    return object_schema(
        {
            "instances": instances_of(*forms),
            "parameters": {"type": ["object", "null"], "properties": parameters, "additionalProperties": False},
            "signature_name": MAYBE_STRING | {"description": "Ignored; clients of TensorFlow Serving send it"},
        },
        ["instances"],
        additionalProperties=False,
    )


def _response(model: LoadedModel, verb: Verb) -> Schema:
    item = _prediction(model) if verb == "predict" else _explanation(model)
    return object_schema(
        {
            "model": {"const": model.name},
            "version": {"const": model.version},
            ANSWERS[verb]: {"type": "array", "items": item},
            "fallback": {"type": "boolean"},
            "forced": {"type": "string"},
        },
        ["model", "version", ANSWERS[verb]],
    )


def _explanation(model: LoadedModel) -> Schema:
    """One explanation; for several classes, output, base value and values stand under each class."""
    assert model.explainer is not None
    explainers = (model.explainer, *model.other_explainers.values())
    by_name: Schema = {"type": "object", "additionalProperties": NUMBER}
    numbers: Schema = {"output": NUMBER, "base_value": NUMBER, "values": by_name}
    required = list(numbers)
    if any(explainer.budget is not None for explainer in explainers):
        numbers["standard_error"] = by_name | {"description": "Of sampled values"}
    if any(explainer.interact is not None for explainer in explainers):
        numbers["interactions"] = {
            "type": "object",
            "additionalProperties": by_name,
            "description": "What features do together, half in either order, and by themselves on the diagonal",
        }
    if model.schema.has_text:
        numbers["words"] = {
            "type": "object",
            "additionalProperties": by_name,
            "description": "Contributions of the words of a text, by feature",
        }
    origin = {
        "space": {"enum": list(model.spaces)},
        "method": {"enum": list(dict.fromkeys(explainer.method for explainer in explainers))},
    }
    properties: Schema = ({} if model.names.targets else numbers) | origin
    if "standard_error" in numbers:
        properties["sampled"] = {"const": True}
    if model.names.labels:
        properties["labels"] = {"type": "object", "additionalProperties": STRING}
    if len(model.labels):
        properties["label"] = {"enum": list(model.labels.classes)}
        each = object_schema(numbers, required)
        properties["classes"] = {"type": "object", "properties": dict.fromkeys(model.labels.texts, each)}
    if model.names.targets:
        properties["targets"] = {"type": "object", "properties": _explained_targets(model, numbers, required)}
    return object_schema(properties, list(origin))


def _explained_targets(model: LoadedModel, numbers: Schema, required: list[str]) -> Schema:
    """The explanation of each target of several."""
    each = object_schema(numbers, required)
    found: Schema = {}
    for name, labels in model.names.targets:
        classes = {"type": "object", "properties": dict.fromkeys(labels.texts, each)}
        own = {"label": {"enum": list(labels.classes)}, "classes": classes} if len(labels) else {}
        found[name] = object_schema(numbers | own, [])
    return found


def _prediction(model: LoadedModel) -> Schema:
    """One prediction; of a model with several targets, that of each below its name."""
    layout = model.layout
    each = [_target_prediction(layout, target) for target in layout.targets]
    if model.manifest.conformal:
        return _bounded(layout, each[0])
    if not layout.is_named:
        return each[0]
    by_name = {target.name: schema for target, schema in zip(layout.targets, each, strict=True)}
    return object_schema({"prediction": object_schema(by_name, list(by_name))}, ["prediction"])


def _bounded(layout: Layout, plain: Schema) -> Schema:
    """A prediction that a request's `coverage` gives an interval or a set."""
    if "value" not in layout.parts:
        labels = {"type": "array", "items": plain["properties"]["label"]}
        return plain | {"properties": plain["properties"] | {"set": labels}}
    interval = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}
    return {"oneOf": [plain, object_schema({"prediction": plain, "interval": interval}, ["prediction", "interval"])]}


def _target_prediction(layout: Layout, target: Target) -> Schema:
    """A number, or a label with the probability or the margin of every class, or with a score."""
    if "value" in layout.parts:
        return NUMBER
    properties: Schema = {}
    if "label" in layout.parts or "probabilities" in layout.parts:
        properties["label"] = {"enum": list(target.classes)} if target.classes else {"type": "integer"}
    texts = list(map(str, target.classes))
    if "probabilities" in layout.parts:
        properties["probabilities"] = object_schema(dict.fromkeys(texts, SHARE), texts)
    if "margins" in layout.parts:
        properties["margins"] = object_schema(dict.fromkeys(texts, NUMBER), texts)
    if "score" in layout.parts:
        properties["score"] = NUMBER
    return object_schema(properties, list(properties))


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_api(
    service: Service, views: Views, streams: Streams, keys: Keys, lifespan: Lifespan, pages: APIRouter | None = None
) -> FastAPI:
    """The app of all routes, and of `pages`; if no key has the scope `admin`, it has no admin routes."""
    api = _API(
        title="forkserve",
        version=importlib.metadata.version("forkserve"),
        summary="Predictions of scikit-learn models and their explanations",
        lifespan=lifespan,
        # the pages of FastAPI load scripts from other sites; its document is encoded anew for every request
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # a redirect would go to any host that the client names
        redirect_slashes=False,
    )
    background = service.background is not None

    def describe() -> Schema:
        openapi = document(api, service.registry, background=background, show_examples=service.show_examples)
        describe_security(openapi, refusal(""), is_open=keys.is_open)
        restate_refusals(openapi)
        return openapi

    api.openapi = cache(describe)  # type: ignore[method-assign]
    routers = [
        _document_router(api, keys),
        models_router(service, views.figures),
        importance_router(service.registry, views.importance),
        card_router(service, has_pages=pages is not None),
        drift_router(service),
        rollout_router(service),
        health_router(service.registry, views.health),
        mlflow_router(service),
        entities_router(service, streams),
        outcomes_router(service),
        predictions_router(service),
        quality_router(service),
        jobs_router(service, streams, keys),
        pages or _alive_router(),
        v2_router(service),
    ]
    if keys.can_have_admin:
        routers.append(admin_router(service, streams, views.snapshots))
    for router in routers:
        api.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    api.add_exception_handler(HTTPException, partial(_answer_problem, routes))
    return api


def _alive_router() -> APIRouter:
    """What KServe's clients ask for, where there are no pages; with them, the first one answers it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_alive(request: Request) -> dict[str, str]:
        if wants_html(request):
            raise RouteNotFound
        return {"status": "alive"}

    return router


def _document_router(api: FastAPI, keys: Keys) -> APIRouter:
    """The OpenAPI document, encoded once for those who may use the same models."""
    router = APIRouter()

    @lru_cache(maxsize=4)
    def encode(paths: tuple[str, ...]) -> bytes:
        document = api.openapi()
        return msgspec.json.encode(document | {"paths": {path: document["paths"][path] for path in paths}})

    @router.get("/openapi.json", include_in_schema=False)
    async def show_document(request: Request) -> Response:
        content = encode(tuple(visible_paths(api.openapi(), keys.reader(request.scope))))
        return Response(content, headers={"cache-control": CACHED_BY_CLIENTS}, media_type="application/json")

    return router


class _API(FastAPI):
    """FastAPI without its own answers to exceptions: the edge around it answers them all."""

    def build_middleware_stack(self) -> ASGIApp:
        return ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=self.exception_handlers)


async def _answer_problem(routes: Sequence[Route], request: Request, error: Exception) -> Response:
    """Answer a refusal of the router (404, 405) in the form of every other refusal; and OPTIONS."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed_methods(routes, request.scope)
        if request.method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
    form = problems.form_of(request.scope["path"])
    content = form.write(error.status_code, error.detail, request.state.request_id, ())
    return Response(content, error.status_code, headers, form.content_type.decode())


def allowed_methods(routes: Iterable[Route], scope: Scope) -> str:
    """The methods of all routes that have the path of `scope`."""
    found = {"OPTIONS"}
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))
