"""`/api/admin` and `/metrics`: reload, rollback, training and the metrics of all processes, for the operator."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from registry.errors import VersionNotFound, VersionRefused
from registry.registry import Registry
from registry.store import aliases
from registry.store.aliases import Aliases
from serving.errors import ReloadRefused, WorkerNotFound
from serving.http.edge import account_of
from serving.http.keys import key_of
from serving.http.routes.jobs import submitted
from serving.http.routes.rollout import RELOAD_ANSWERS, RELOAD_SECONDS, add_rollout, reasons_of, reloaded
from serving.http.sse import EventStream, Frames, Streams, frame, opening
from serving.process.kernel import drain_worker
from serving.service import Service
from serving.status.json import summarize, summarize_drift
from serving.status.prometheus import expose
from serving.status.snapshot import Snapshot
from serving.storage.background import Recent
from serving.training.job import submit_training, training_request

PID = re.compile("[1-9][0-9]{0,9}")

METRICS_SECONDS = 2.0
"""Between two events of the stream of metrics."""

TRAIN_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job that trains it, which may have been there before",
        "headers": {"Location": {"schema": {"type": "string"}}},
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    409: {"description": "The model has no training function, or another model is being trained"},
    429: {"description": "Too many jobs are waiting"},
}


def admin_router(service: Service, streams: Streams, snapshots: Recent[Snapshot]) -> APIRouter:
    """Everything that needs a key of scope `admin`."""
    router = APIRouter(tags=["admin"])
    _add_models(router, service)
    add_rollout(router, service)
    _add_metrics(router, service, streams, snapshots)
    _add_processes(router, service)
    return router


def _add_processes(router: APIRouter, service: Service) -> None:
    @router.post(
        "/api/admin/workers/{pid}:drain",
        summary="Have a web worker finish its requests and end; another takes its place at once",
        status_code=202,
    )
    async def drain(pid: str) -> dict[str, Any]:
        if not PID.fullmatch(pid) or not drain_worker(int(pid)):
            raise WorkerNotFound
        return {"status": "draining", "pid": int(pid)}

    @router.post("/api/admin/schedules/{name}:pause", summary="Pass over what is due of a schedule, until it goes on")
    async def pause(name: str) -> dict[str, Any]:
        return await service.scheduler.pause(name, paused=True)

    @router.post("/api/admin/schedules/{name}:resume", summary="Have a paused schedule go on")
    async def resume(name: str) -> dict[str, Any]:
        return await service.scheduler.pause(name, paused=False)

    @router.get("/api/admin/log", summary="The last warnings and errors of all processes, the newest first")
    async def show_log() -> dict[str, Any]:
        return {"events": service.shared.alerts.tail.events()}


def _add_models(router: APIRouter, service: Service) -> None:
    registry, reloads = service.registry, service.shared.reloads

    @router.post(
        "/api/admin/models:reload", summary="Load what is new in the model directory", responses=RELOAD_ANSWERS
    )
    async def reload(response: Response) -> dict[str, Any]:
        outcome = await reloads.ask(RELOAD_SECONDS)
        if outcome is not None and outcome.refused:
            raise ReloadRefused(reasons_of(outcome))
        return reloaded(outcome, response)

    @router.post(
        "/api/admin/models/{model}/versions/{version}:promote",
        summary="Make a version of a model live",
        responses=RELOAD_ANSWERS,
    )
    async def promote(model: str, version: str, response: Response) -> dict[str, Any]:
        loaded = registry.get(model, version)
        await asyncio.to_thread(aliases.promote, service.model_dir / loaded.name, loaded.version)
        outcome = await reloads.ask(RELOAD_SECONDS)
        if outcome is not None and outcome.live.get(model) != version:
            raise ReloadRefused(reasons_of(outcome))
        return reloaded(outcome, response)

    @router.post(
        "/api/admin/models/{model}:rollback",
        summary="Make the previous version of a model live again",
        responses=RELOAD_ANSWERS,
    )
    async def rollback(model: str, response: Response) -> dict[str, Any]:
        after = await asyncio.to_thread(_roll_back, registry, model, service.model_dir)
        outcome = await reloads.ask(RELOAD_SECONDS)
        if outcome is not None and outcome.live.get(model) != after.live:
            raise ReloadRefused(reasons_of(outcome))
        return reloaded(outcome, response)

    @router.post(
        "/api/admin/models/{model}:train",
        summary="Retrain a model; the new version becomes live if it is no worse than the live one",
        status_code=202,
        response_class=Response,
        responses=TRAIN_ANSWERS,
    )
    async def train(model: str, request: Request) -> Response:
        asked = training_request(registry.get(model).manifest)
        owner = key_of(request.scope).name, account_of(request.scope)
        return submitted(await submit_training(service.shared.jobs, asked.of(*owner)))


def _add_metrics(router: APIRouter, service: Service, streams: Streams, snapshots: Recent[Snapshot]) -> None:
    @router.get("/api/admin/metrics", summary="The metrics of all processes")
    async def metrics() -> dict[str, Any]:
        return summarize(await snapshots.get()) | {
            "quality": await service.quality.take(),
            "drift": summarize_drift(service.drift.measure(service.registry.live())),
        }

    async def frames() -> Frames:
        yield opening()
        while not streams.ending.is_set():
            yield frame("metrics", msgspec.json.encode(await metrics()))
            with suppress(TimeoutError):
                async with asyncio.timeout(METRICS_SECONDS):
                    await streams.ending.wait()

    @router.get(
        "/api/admin/events",
        summary="The metrics of all processes, again and again, as server-sent events",
        status_code=200,
        response_class=EventStream,
    )
    async def events() -> Response:
        return EventStream(streams, frames())

    @router.get("/metrics", summary="The metrics of all processes, for Prometheus", response_class=Response)
    async def prometheus() -> Response:
        drift = service.drift.measure(service.registry.live())
        content = expose(await snapshots.get(), await service.quality.take(), drift)
        return Response(content, media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _roll_back(registry: Registry, name: str, model_dir: Path) -> Aliases:
    """Raises ModelNotFound, VersionNotFound when the previous version is not loaded, ReloadRefused."""
    served = registry.versions(name)
    try:
        before = aliases.current(model_dir / name)
        if before.previous not in served:
            raise VersionNotFound
        return aliases.rollback(model_dir / name)
    except VersionRefused as error:
        raise ReloadRefused(f"{name}/{error.path.name}: {error.reason}") from error
