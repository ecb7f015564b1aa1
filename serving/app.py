"""The web app: the hot path in front, FastAPI for all the rest, one edge around both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from registry.registry import Registry
from serving.http import problems
from serving.http.edge import App, Edge, Receive, Scope, Send
from serving.http.openapi import document
from serving.http.routes.admin import admin_router
from serving.http.routes.authorizing import make_authorize
from serving.http.routes.entities import entities_router
from serving.http.routes.health import health_router
from serving.http.routes.jobs import jobs_router
from serving.http.routes.metrics import metrics_router
from serving.http.routes.models import models_router
from serving.http.routes.outcomes import outcomes_router
from serving.http.routes.predict import PATH, InferenceRoute
from serving.http.routes.streams import streams_router
from serving.http.routes.training import training_router
from serving.jobs.requests import Background
from serving.parts import Options, Parts
from serving.shared.pressure import Trimmer
from serving.status.snapshot import Figures
from serving.storage.watch import StoreWatch
from serving.training.last import LastTrainings

Renew = Callable[[], tuple["Application", tuple[str, ...]]]
"""Builds the app over what is in the model directory now, and says of which files it could not be."""


def create_app(parts: Parts, options: Options, renew: Renew) -> Application:
    """The app over these parts. Building it starts nothing: threads and connections begin with its lifespan."""
    parts.prepare()
    api = _make_api(parts, options)
    hot_path = InferenceRoute(
        registry=parts.registry,
        inference=parts.inference,
        streams=parts.streams,
        metrics=parts.metrics,
        max_body_bytes=options.max_body_bytes,
        max_instances=options.max_instances,
        max_explained_instances=options.max_explained_instances,
        access_log=options.access_log,
        background=Background(parts.jobs.store, parts.jobs.reader) if options.background else None,
    )
    hot = Edge(hot_path, figures=parts.metrics.responses, access_log=options.access_log, admission=parts.admission)
    wrap = _as_it_is if parts.tracing is None else parts.tracing.wrap
    return Application(wrap(api), wrap(hot), parts, renew)


def _as_it_is(app: App) -> App:
    return app


def _make_api(parts: Parts, options: Options) -> FastAPI:
    """All but predictions and explanations."""
    api = FastAPI(
        title="forkserve",
        version=options.version,
        summary="Predictions of scikit-learn models, and what they are made of",
        lifespan=lambda _api: parts.running(),
        # the pages of FastAPI load scripts from elsewhere; the document itself is at /openapi.json
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # a redirect would go to whatever host the client has named
        redirect_slashes=False,
    )
    for router in (*_open_routers(parts, options), *_admin_routers(parts, options)):
        api.include_router(router)
    api.add_exception_handler(HTTPException, _problem)
    api.openapi = _Document(api, parts.registry, background=options.background)  # type: ignore[method-assign]
    api.add_middleware(Edge, figures=parts.metrics.responses, access_log=options.access_log, admission=parts.admission)
    return api


def _open_routers(parts: Parts, options: Options) -> Iterator[APIRouter]:
    """For everybody."""
    registry, jobs, data, lasting = parts.registry, parts.jobs, parts.data, parts.lasting
    yield models_router(registry)
    trainings = LastTrainings(options.model_dir, (model.name for model in registry.live()))
    jobs_watch, records_watch = StoreWatch(jobs.store.probe), StoreWatch(data.source.probe)
    yield health_router(
        registry, parts.cache, lasting.reloads, jobs_watch, records_watch, data.source, lasting.pressure, trainings
    )
    yield streams_router(parts.streams, jobs.events, jobs.store.get)
    yield entities_router(
        data.source,
        data.predictor,
        data.arrivals,
        parts.streams,
        max_body_bytes=options.max_body_bytes,
        max_records=options.max_instances,
        access_log=options.access_log,
    )
    yield outcomes_router(data.source, data.outcomes, data.writer, max_body_bytes=options.max_body_bytes)
    yield jobs_router(
        jobs.store, jobs.events, jobs.reader, max_body_bytes=options.max_body_bytes, max_csv_bytes=jobs.max_csv_bytes
    )


def _admin_routers(parts: Parts, options: Options) -> Iterator[APIRouter]:
    """For who has the token."""
    registry, lasting = parts.registry, parts.lasting
    authorize = make_authorize(options.admin_token, in_query=options.admin_token_in_query)
    figures = Figures(
        parts.metrics,
        registry=registry,
        store=parts.jobs.store,
        reloads=lasting.reloads,
        pressure=lasting.pressure,
        timetable=parts.schedules.timetable,
    )
    yield metrics_router(authorize, figures, parts.streams, parts.data.quality)
    yield admin_router(authorize, registry, options.model_dir, lasting.reloads)
    yield training_router(authorize, registry, parts.jobs.store)


class Application:
    """The app as servers see it: predictions and explanations go their own short way, all the rest goes to FastAPI.

    FastAPI's way alone costs 20 us a request, as much as everything else that a prediction needs.
    """

    def __init__(self, api: App, hot_path: App, parts: Parts, renew: Renew) -> None:
        """`renew` is for the master, which tells `lasting.reloads` the outcome."""
        self._api = api
        self._hot_path = hot_path
        self._metrics = parts.metrics
        self._trimmer = Trimmer(parts.lasting.pressure)
        self.registry = parts.registry
        self.lasting = parts.lasting
        self.renew = renew
        self.runner = parts.jobs.runner
        """For a process that works on jobs."""
        self.scheduler = parts.schedules.scheduler
        """For a process that fires schedules."""
        self.start_processes = parts.executor.start
        """For a worker that has one thread."""
        self.end_streams = parts.streams.end
        """For a worker that drains."""
        self.reason_to_replace = parts.reason_to_replace

    def count_refusal(self, status: int) -> None:
        """The server has answered a request that never got here."""
        self._metrics.responses.answered(status)

    def tick(self) -> None:
        """Now and then, in a worker: tell figures, give memory back when the master has asked for it."""
        self._metrics.publish()
        self._trimmer.heed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._api(scope, receive, send)
            return
        scope["path_params"] = path.groupdict()
        await self._hot_path(scope, receive, send)


class _Document:
    """Makes the OpenAPI document when it is first asked for."""

    def __init__(self, app: FastAPI, registry: Registry, *, background: bool) -> None:
        self._app = app
        self._registry = registry
        self._background = background

    def __call__(self) -> dict[str, Any]:
        if self._app.openapi_schema is None:
            self._app.openapi_schema = document(self._app, self._registry, background=self._background)
        return self._app.openapi_schema


async def _problem(request: Request, error: Exception) -> Response:
    """What the router refuses (404, 405) in the form of every other refusal."""
    assert isinstance(error, HTTPException)
    content = problems.body(error.status_code, error.detail, request.state.request_id)
    return Response(content, error.status_code, error.headers, problems.CONTENT_TYPE.decode())
