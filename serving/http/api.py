"""All routes except predictions and explanations, as one FastAPI app without an edge of its own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache

from fastapi import FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from serving.http import problems
from serving.http.openapi import document
from serving.http.routes.admin import Authorize, admin_router
from serving.http.routes.entities import entities_router
from serving.http.routes.health import health_router
from serving.http.routes.jobs import jobs_router
from serving.http.routes.models import models_router
from serving.http.routes.outcomes import outcomes_router
from serving.http.sse import Streams
from serving.service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_api(service: Service, streams: Streams, authorize: Authorize | None, lifespan: Lifespan) -> FastAPI:
    """The app of all routes; without `authorize` it has no admin routes."""
    api = _API(
        title="forkserve",
        version=importlib.metadata.version("forkserve"),
        summary="Predictions of scikit-learn models and their explanations",
        lifespan=lifespan,
        # the pages of FastAPI load scripts from other sites; the document itself is at /openapi.json
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # a redirect would go to any host that the client names
        redirect_slashes=False,
    )
    background = service.background is not None
    api.openapi = cache(lambda: document(api, service.registry, background=background))  # type: ignore[method-assign]
    for router in (
        models_router(service.registry),
        health_router(service),
        entities_router(service, streams),
        outcomes_router(service),
        jobs_router(service, streams),
    ):
        api.include_router(router)
    if authorize is not None:
        api.include_router(admin_router(service, streams, authorize))
    api.add_exception_handler(HTTPException, _problem)
    return api


class _API(FastAPI):
    """FastAPI without its own answers to exceptions: the edge around it answers them all."""

    def build_middleware_stack(self) -> ASGIApp:
        return ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=self.exception_handlers)


async def _problem(request: Request, error: Exception) -> Response:
    """Answer a refusal of the router (404, 405) in the form of every other refusal."""
    assert isinstance(error, HTTPException)
    content = problems.body(error.status_code, error.detail, request.state.request_id)
    return Response(content, error.status_code, error.headers, problems.CONTENT_TYPE.decode())
