"""The web app: the hot path in front, FastAPI for all the rest, one edge around both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from cache.tiered import TieredCache
from registry.registry import Registry
from serving import problems
from serving.admission import Admission
from serving.announcements import Announcements
from serving.arrivals import Arrivals
from serving.asgi import App, Edge, Receive, Scope, Send
from serving.background import Background
from serving.batching import Batcher
from serving.data.source import Source
from serving.data.writer import OutcomeWriter
from serving.entities import EntityPredictor
from serving.events.log import EventLog
from serving.executor import Executor
from serving.figures.snapshot import Figures
from serving.inference import Inference
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.lasting import Lasting
from serving.memory.trimming import Trimmer
from serving.metrics.families import BATCHES, CACHE, EXECUTORS, STREAMS, breakers
from serving.metrics.recording import Metrics
from serving.outcomes import LiveQuality, OutcomeReader
from serving.routes.admin import admin_router
from serving.routes.authorizing import make_authorize
from serving.routes.entities import entities_router
from serving.routes.health import health_router
from serving.routes.inference import PATH, InferenceRoute
from serving.routes.jobs import jobs_router
from serving.routes.metrics import metrics_router
from serving.routes.models import models_router
from serving.routes.openapi import document
from serving.routes.outcomes import outcomes_router
from serving.routes.streams import streams_router
from serving.routes.training import training_router
from serving.schedules.building import Schedules
from serving.schedules.scheduler import Scheduler
from serving.storage.watch import StoreWatch
from serving.streams import Streams
from serving.submitting import JobReader
from serving.tracing import Tracing
from serving.training.last import LastTrainings

Renew = Callable[[], tuple["Application", tuple[str, ...]]]
"""Builds the app over what is in the model directory now, and says of which files it could not be."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """All that jobs need: where they are kept and told of, who reads requests for them, who works on them."""

    store: JobStore
    events: EventLog
    reader: JobReader
    runner: Runner
    max_csv_bytes: int

    async def close(self) -> None:
        """Disconnect from both."""
        await self.store.close()
        await self.events.close()


@dataclass(frozen=True, slots=True)
class Data:
    """All that records and outcomes need: where they are kept, who is asked about them, who tells of them."""

    source: Source
    predictor: EntityPredictor
    arrivals: Arrivals
    outcomes: OutcomeReader
    writer: OutcomeWriter
    quality: LiveQuality

    async def close(self) -> None:
        """Finish what waits, then disconnect; before the log of events is closed."""
        await self.arrivals.close()
        await self.writer.close()
        await self.source.close()


def create_app(
    registry: Registry,
    inference: Inference,
    cache: TieredCache,
    *,
    batcher: Batcher,
    executor: Executor,
    jobs: Jobs,
    data: Data,
    schedules: Schedules,
    streams: Streams,
    metrics: Metrics,
    tracing: Tracing | None,
    version: str,
    max_body_bytes: int,
    max_instances: int,
    max_explained_instances: int,
    admin_token: str,
    admin_token_in_query: bool,
    access_log: bool,
    admission: Admission | None,
    model_dir: Path,
    background: bool,
    announcements: Announcements | None,
    lasting: Lasting,
    renew: Renew,
) -> Application:
    """The app over these parts. Building it starts nothing: threads and connections begin with its lifespan.

    Without `announcements` other instances are neither told of reloads nor listened to.
    """
    reloads, pressure, alerts = lasting.reloads, lasting.pressure, lasting.alerts

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Nothing here may fail on an outside service: gunicorn shuts all down when one worker cannot start.
        metrics.book.enter_alone()
        executor.start()
        batcher.start()
        alerts.start()
        if tracing is not None:
            tracing.start()
        async with _running(announcements):
            yield
            await data.close()
        metrics.publish()
        batcher.stop()
        executor.stop()
        await streams.end()
        await cache.close()
        await jobs.close()
        await schedules.timetable.close()
        if admission is not None:
            await admission.close()
        await alerts.stop()
        await alerts.outbound.close()
        if tracing is not None:
            await tracing.stop()

    inference.prepare()
    _follow(metrics, cache, batcher, executor, streams)
    app = FastAPI(
        title="forkserve",
        version=version,
        summary="Predictions of scikit-learn models, and what they are made of",
        lifespan=lifespan,
        # the pages of FastAPI load scripts from elsewhere; the document itself is at /openapi.json
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # a redirect would go to whatever host the client has named
        redirect_slashes=False,
    )
    app.include_router(models_router(registry))
    trainings = LastTrainings(model_dir, (model.name for model in registry.live()))
    jobs_watch, records_watch = StoreWatch(jobs.store.probe), StoreWatch(data.source.probe)
    app.include_router(
        health_router(registry, cache, reloads, jobs_watch, records_watch, data.source, pressure, trainings)
    )
    app.include_router(streams_router(streams, jobs.events, jobs.store.get))
    authorize = make_authorize(admin_token, in_query=admin_token_in_query)
    figures = Figures(
        metrics, registry=registry, store=jobs.store, reloads=reloads, pressure=pressure, timetable=schedules.timetable
    )
    app.include_router(metrics_router(authorize, figures, streams, data.quality))
    app.include_router(admin_router(authorize, registry, model_dir, reloads))
    app.include_router(training_router(authorize, registry, jobs.store))
    app.include_router(
        entities_router(
            data.source,
            data.predictor,
            data.arrivals,
            streams,
            max_body_bytes=max_body_bytes,
            max_records=max_instances,
            access_log=access_log,
        )
    )
    app.include_router(outcomes_router(data.source, data.outcomes, data.writer, max_body_bytes=max_body_bytes))
    app.include_router(
        jobs_router(
            jobs.store,
            jobs.events,
            jobs.reader,
            max_body_bytes=max_body_bytes,
            max_csv_bytes=jobs.max_csv_bytes,
        )
    )
    app.add_exception_handler(HTTPException, _problem)
    app.openapi = _Document(app, registry, background=background)  # type: ignore[method-assign]
    app.add_middleware(Edge, figures=metrics.responses, access_log=access_log, admission=admission)
    hot_path = InferenceRoute(
        registry=registry,
        inference=inference,
        streams=streams,
        metrics=metrics,
        max_body_bytes=max_body_bytes,
        max_instances=max_instances,
        max_explained_instances=max_explained_instances,
        access_log=access_log,
        background=Background(jobs.store, jobs.reader) if background else None,
    )
    hot = Edge(hot_path, figures=metrics.responses, access_log=access_log, admission=admission)
    return Application(
        app if tracing is None else tracing.wrap(app),
        hot if tracing is None else tracing.wrap(hot),
        registry=registry,
        runner=jobs.runner,
        scheduler=schedules.scheduler,
        start_processes=executor.start,
        end_streams=streams.end,
        unwell=lambda: batcher.unwell() or executor.unwell(),
        metrics=metrics,
        lasting=lasting,
        renew=renew,
    )


def _follow(metrics: Metrics, cache: TieredCache, batcher: Batcher, executor: Executor, streams: Streams) -> None:
    """What these parts count for themselves."""
    metrics.follow(CACHE, cache.stats.figures)
    metrics.follow(BATCHES, batcher.figures)
    metrics.follow(EXECUTORS, lambda: (executor.replacements,))
    metrics.follow(STREAMS, lambda: (streams.hub.open_streams,))
    metrics.follow(breakers(("redis",)), lambda: (cache.redis_state in ("open", "half-open"),))


@asynccontextmanager
async def _running(announcements: Announcements | None) -> AsyncIterator[None]:
    """Told and heard beside whatever is done meanwhile."""
    if announcements is None:
        yield
        return
    task = asyncio.create_task(announcements.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await announcements.close()


class Application:
    """The app as servers see it: predictions and explanations go their own short way, all the rest goes to FastAPI.

    FastAPI's way alone costs 20 us a request, as much as everything else that a prediction needs.
    """

    def __init__(
        self,
        api: App,
        hot_path: App,
        *,
        registry: Registry,
        runner: Runner,
        scheduler: Scheduler,
        start_processes: Callable[[], None],
        end_streams: Callable[[], Awaitable[None]],
        unwell: Callable[[], str | None],
        metrics: Metrics,
        lasting: Lasting,
        renew: Renew,
    ) -> None:
        """`start_processes` is for a worker that has one thread, `end_streams` for one that drains.

        `runner` is for a process that works on jobs, `scheduler` for one that fires schedules. `unwell` says why it
        should be replaced, if so. `renew` is for the master, which tells `lasting.reloads` the outcome.
        """
        self._api = api
        self._hot_path = hot_path
        self.registry = registry
        self.runner = runner
        self.scheduler = scheduler
        self.start_processes = start_processes
        self.end_streams = end_streams
        self.unwell = unwell
        self.lasting = lasting
        self.renew = renew
        self._metrics = metrics
        self._trimmer = Trimmer(lasting.pressure)

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
