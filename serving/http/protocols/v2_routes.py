"""What the Open Inference Protocol, and Triton's extensions of it, tell about the server and its models."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from registry.model import LoadedModel
from registry.registry import Registry
from registry.rows.features import Feature
from serving.http.keys import key_of
from serving.http.protocols.tensors import TEXTS
from serving.http.protocols.v2 import ModelTensors
from serving.http.representation import revalidate
from serving.service import Service
from serving.shared.book import SheetCopy
from serving.shared.histogram import BUCKETS
from serving.shared.metrics import MODEL

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
"""Those of Triton's that are here: of the repository the index, of the configuration what is read."""

MATRIX = "input"
"""What metadata calls the matrix of all features; any name is taken."""

DATATYPES: Mapping[str, str] = {"number": "FP64", "integer": "INT64", "boolean": "BOOL"}


def v2_router(service: Service) -> APIRouter:
    """The routes below /v2 that are no predictions."""
    router = APIRouter(prefix="/v2", tags=["v2"])
    registry, book, documents = service.registry, service.shared.book, [Depends(revalidate)]
    version = importlib.metadata.version("forkserve")

    @router.get("", summary="The server and its extensions", dependencies=documents)
    @router.get("/", include_in_schema=False, dependencies=documents)
    async def show_server() -> dict[str, Any]:
        return {"name": "forkserve", "version": version, "extensions": EXTENSIONS}

    @router.get("/health/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="The models are loaded, all of them or some")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @router.post("/repository/index", summary="All models and versions")
    async def list_repository(request: Request) -> list[dict[str, str]]:
        return repository_index(registry, request)

    @router.get("/models/stats", summary="What has been asked of all models")
    async def show_all_statistics(request: Request) -> dict[str, Any]:
        allowed = [model for model in registry.live() if key_of(request.scope).may_use(model.name)]
        pages = book.read()
        return {"model_stats": [statistics(pages, model) for model in allowed]}

    @router.get("/models/{model}", summary="The tensors of a model", dependencies=documents)
    @router.get("/models/{model}/versions/{version}", summary="The tensors of a version", dependencies=documents)
    async def show_metadata(model: str, version: str = "") -> dict[str, Any]:
        found = registry.get(model, version or None)
        return metadata(found, list(registry.versions(model)))

    @router.get("/models/{model}/ready", summary="A model can predict")
    @router.get("/models/{model}/versions/{version}/ready", summary="A version can predict")
    async def model_ready(model: str, version: str = "") -> dict[str, Any]:
        return {"name": registry.get(model, version or None).name, "ready": True}

    @router.get("/models/{model}/config", summary="A model as Triton configures it", dependencies=documents)
    @router.get("/models/{model}/versions/{version}/config", summary="A version as Triton configures it")
    async def show_config(model: str, version: str = "") -> dict[str, Any]:
        return config(registry.get(model, version or None), service.limits.max_instances)

    @router.get("/models/{model}/stats", summary="What has been asked of a model")
    @router.get("/models/{model}/versions/{version}/stats", summary="What has been asked of a model")
    async def show_statistics(model: str, version: str = "") -> dict[str, Any]:
        return {"model_stats": [statistics(book.read(), registry.get(model, version or None))]}

    return router


def repository_index(registry: Registry, request: Request) -> list[dict[str, str]]:
    """The versions that the key of a request may use, and those that could not be loaded."""
    key = key_of(request.scope)
    served = [
        {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
        for model in registry
        if key.may_use(model.name)
    ]
    refused = [
        {"name": one.model, "version": one.version, "state": "UNAVAILABLE", "reason": one.reason}
        for one in registry.refusals
        if key.may_use(one.model)
    ]
    return served + refused


def metadata(model: LoadedModel, versions: list[str]) -> dict[str, Any]:
    """The tensors of a model: one matrix if all features are numbers of one array, else a column for each."""
    outputs = ModelTensors(model).columns
    return {
        "name": model.name,
        "versions": versions,
        "platform": f"sklearn_{model.manifest.artefact_format}",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1, columns]}
            for name, (datatype, columns) in _inputs(model).items()
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, columns]}
            for name, (datatype, columns) in outputs.items()
        ],
    }


def _inputs(model: LoadedModel) -> Mapping[str, tuple[str, int]]:
    features = model.schema.features
    if model.schema.is_plain:
        return {MATRIX: ("FP64", len(features))}
    return {feature.name: (_datatype(feature), 1) for feature in features}


def _datatype(feature: Feature) -> str:
    if feature.kind != "category":
        return DATATYPES.get(feature.kind, TEXTS)
    kinds = set(map(type, feature.categories))
    if kinds == {bool}:
        return "BOOL"
    if kinds and kinds <= {int, float}:
        return "INT64" if kinds == {int} else "FP64"
    return TEXTS


def config(model: LoadedModel, max_rows: int) -> dict[str, Any]:
    """A model as Triton's configuration describes one."""

    def tensors(found: Mapping[str, tuple[str, int]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "data_type": "TYPE_STRING" if kind == TEXTS else f"TYPE_{kind}", "dims": [columns]}
            for name, (kind, columns) in found.items()
        ]

    return {
        "name": model.name,
        "platform": f"sklearn_{model.manifest.artefact_format}",
        "backend": "forkserve",
        "max_batch_size": max_rows,
        "input": tensors(_inputs(model)),
        "output": tensors(ModelTensors(model).columns),
    }


def statistics(pages: Iterable[SheetCopy], model: LoadedModel) -> dict[str, Any]:
    """What all workers have counted of a model, its versions together; times are in nanoseconds."""
    answered = refused = rows = cached = 0
    seconds = 0.0
    for page in pages:
        if page.sheet.families != MODEL or page.sheet.labels["model"] != model.name:
            continue
        (_, times), (_, statuses), (sources, counted) = page.totals()
        answered += int(sum(times[:BUCKETS]))
        seconds += times[BUCKETS]
        refused += int(sum(statuses))
        rows += int(sum(counted))
        by_source = dict(zip(sources.values, counted, strict=True))
        cached += int(by_source["hit-memory"] + by_source["hit-redis"])
    nothing = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": 0,
        "inference_count": rows,
        "execution_count": answered,
        "inference_stats": {
            "success": {"count": answered, "ns": int(seconds * 1e9)},
            "fail": {"count": refused, "ns": 0},
            "queue": nothing,
            "compute_input": nothing,
            "compute_infer": nothing,
            "compute_output": nothing,
            "cache_hit": {"count": cached, "ns": 0},
            "cache_miss": {"count": rows - cached, "ns": 0},
        },
        "batch_stats": [],
    }
