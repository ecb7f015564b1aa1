"""`POST /api/admin/models/{model}:train`: have a model trained anew, in the background."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response

from registry.registry import Registry
from serving.http.routes.authorizing import Authorize
from serving.http.routes.jobs import submitted
from serving.jobs.store import JobStore
from serving.training.request import submit_training

TRAIN: dict[str, Any] = {
    "summary": "Train a model anew; what is no worse than the live version becomes live",
    "status_code": 202,
    "response_class": Response,
    "responses": {
        202: {
            "description": "The job that trains it; one that was there before, if there is one",
            "headers": {"Location": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        409: {"description": "The model has no training function, or another model is being trained"},
        429: {"description": "Too many jobs are waiting"},
    },
}


def training_router(authorize: Authorize | None, registry: Registry, store: JobStore) -> APIRouter:
    """Behind the admin token; without one there is no such route."""
    router = APIRouter(prefix="/api/admin", tags=["admin"])
    if authorize is None:
        return router

    @router.post("/models/{model}:train", dependencies=[Depends(authorize)], **TRAIN)
    async def train(model: str) -> Response:
        return submitted(await submit_training(store, registry.get(model).manifest))

    return router
