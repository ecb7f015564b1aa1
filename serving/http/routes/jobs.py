"""`/v1/jobs`: submit many rows, follow the job, fetch the answers, cancel."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import QueryParams

from registry.errors import ModelNotFound, VersionNotFound
from registry.model import LoadedModel
from registry.registry import Registry
from serving.errors import DeadlineExceeded, InvalidRequest, JobUnfinished, NotPermitted, UnsupportedBody
from serving.events.log import EventLog
from serving.http.body import (
    answer_json,
    body_type,
    check_encoding,
    read_body,
    read_boolean,
    stream_body,
    turns_of_client,
)
from serving.http.coding import PIECE_BYTES
from serving.http.edge import account_of
from serving.http.keys import Keys, key_of
from serving.http.negotiation import preferred
from serving.http.sse import EventStream, LastEventId, Streams
from serving.jobs.chunks import Chunks
from serving.jobs.job import Job, JobRequest
from serving.jobs.requests import idempotency_key
from serving.jobs.results import csv_result, importance_csv, importance_result, json_result, whole_result
from serving.jobs.rows import IMPORTANCE, OPERATIONS, RowParameters, parameters_of, unpack
from serving.jobs.store import JobStore, public_error
from serving.jobs.tables import FORMATS, Tables
from serving.monitoring.replay import OPERATION as REPLAY
from serving.monitoring.replay import is_replay, read_replay, replay_result, show_replay
from serving.pictures.chart import SVG
from serving.pictures.importance import importance_bars
from serving.predict.operation import VERBS
from serving.service import Service

LAST_EVENTS = frozenset({"done", "failed", "cancelled"})
"""The kinds of the events after which nothing happens to a job any more."""


DRY_RUN = "dry_run"
"""The parameter with which a body is checked, and its time estimated, without a job."""

CHUNK_SECONDS = 0.005
"""What a chunk costs a runner besides its rows: it is fetched, and its answers are kept."""

RESULTS = (b"application/json", b"text/csv")
"""The media types of results, besides those of tables; the first is the default."""


def jobs_router(service: Service, streams: Streams, keys: Keys) -> APIRouter:
    """The routes of jobs, which cannot be listed, nor their ids guessed. A job's events have its id as topic."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    store, events = service.shared.jobs, service.shared.events

    @router.post("", status_code=202, summary="Predict or explain many rows in the background")
    async def submit(request: Request) -> Response:
        return await _take(service, request, keys)

    async def find(job_id: str, request: Request) -> Job:
        """The job, if it belongs to the request's key. Raises JobNotFound."""
        job = await store.get(job_id)
        key_of(request.scope).check_job(job)
        return job

    @router.get("/{job_id}", summary="The state of a job")
    async def show(job_id: str, request: Request) -> Response:
        return answer_json(job_view(await find(job_id, request)))

    @router.get("/{job_id}/result", summary="The answers, as JSON, or as CSV, Parquet or Arrow if accepted")
    async def result(job_id: str, request: Request) -> Response:
        job = await find(job_id, request)
        if job.state != "done":
            raise JobUnfinished(f"the job has no result; it is {job.state}")
        model, accept = _model_of(service.registry, job), dict(request.scope["headers"]).get(b"accept")
        if job.operation == IMPORTANCE:
            return _importance(await importance_result(store, job, model), accept)
        return await _result(store, job, model, accept, service.tables)

    @router.delete("/{job_id}", summary="Cancel a job")
    async def cancel(job_id: str, request: Request) -> Response:
        await find(job_id, request)
        return answer_json(job_view(await store.cancel(job_id)))

    @router.get(
        "/{job_id}/events",
        summary="What happens to a job, as server-sent events",
        status_code=200,
        response_class=EventStream,
        responses={204: {"description": "The job is finished and has no further events; do not come back"}},
    )
    async def follow_job(job_id: str, request: Request, last_event_id: LastEventId) -> Response:
        job = await find(job_id, request)
        after = last_event_id or 0
        if job.is_finished and not await _has_more(events, job_id, after):
            return Response(status_code=204)
        frames = streams.follow(job_id, after, request.scope, last=LAST_EVENTS, follow=not job.is_finished)
        return EventStream(streams, frames)

    return router


async def _take(service: Service, request: Request, keys: Keys) -> Response:
    """Make a job of a request, or only look at what it would be."""
    is_dry = read_boolean(DRY_RUN, request.query_params.get(DRY_RUN, ""))
    asked = await _read(request, service, keys)
    if is_dry and asked.operation == REPLAY:
        raise InvalidRequest(f"{DRY_RUN} is a parameter of jobs over rows")
    if is_dry:
        return answer_json(await _estimate(service, asked))
    owner = key_of(request.scope).name, account_of(request.scope)
    return submitted(await _submit(service.shared.jobs, asked.of(*owner)))


async def _read(request: Request, service: Service, keys: Keys) -> JobRequest:
    reader, limits = service.job_reader, service.limits
    headers = dict(request.scope["headers"])
    check = key_of(request.scope).check_model
    key = idempotency_key(request.headers.get("idempotency-key"))
    kind = body_type(headers)
    check_encoding(headers)
    if kind == b"application/json":
        body = await read_body(headers, request.receive, limits.max_body_bytes)
        if is_replay(body):
            if not keys.is_admin(request.scope):  # it tells of the requests of others
                raise NotPermitted("a replay takes a key of scope admin", "admin")
            return await read_replay(service.registry, service.shared.predictions, body, key, check)
        with turns_of_client(request.receive) as turns:
            return await reader.read_json(body, key, turns, check)
    query = {name: value for name, value in query_of(request.query_params).items() if name != DRY_RUN}
    if kind == b"text/csv":
        rows = stream_body(headers, request.receive, limits.max_csv_bytes)
        return await reader.read_csv(query, rows, key, check)
    if kind in FORMATS:
        rows = stream_body(headers, request.receive, limits.max_csv_bytes)
        return await reader.read_table(query, FORMATS[kind], rows, key, check)
    raise UnsupportedBody("send application/json, text/csv in UTF-8, Parquet or an Arrow stream")


async def _estimate(service: Service, asked: JobRequest) -> dict[str, Any]:
    """What a job would have to do, and how long that takes; null where an explainer takes too long to be tried.

    Raises Overloaded, ModelFailed, CallFailed, MemoryExceeded.
    """
    model = service.registry.get(asked.model, asked.version)
    verb, parameters = OPERATIONS[asked.operation], msgspec.json.decode(asked.parameters, type=RowParameters)
    found = {"operation": asked.operation, "model": asked.model, "version": asked.version, "rows": parameters.rows}
    selection = parameters.selection()
    each = None
    if parameters.rows and not (verb == "explain" and model.explainer_for(selection).jobs_only):
        rows = unpack(asked.inputs[0], model.schema)
        with suppress(DeadlineExceeded):
            each = await service.inference.measure(model, verb, rows, selection=selection)
    seconds = None if each is None else each * parameters.rows + CHUNK_SECONDS * len(asked.inputs)
    return found | {"chunks": len(asked.inputs), "row_seconds": each, "seconds": seconds}


async def _has_more(events: EventLog, job_id: str, after: int) -> bool:
    """Return whether a client that has seen the event `after` has more to read, or has missed events."""
    page = await events.read(job_id, after, 1)
    return bool(page.events) or page.is_gap(after)


async def _result(
    store: JobStore, job: Job, model: LoadedModel | None, accept: bytes | None, tables: Tables | None
) -> Response:
    if job.operation == REPLAY:
        return answer_json(show_replay(job, await replay_result(store, job)))
    if job.operation not in VERBS:
        return StreamingResponse(whole_result(store, job), media_type="application/json")
    headers = {"X-Model-Forced": "true"} if model is not None and model.manifest.forced else {}
    accepted = preferred(accept, RESULTS if tables is None else (*RESULTS, *FORMATS))
    if tables is not None and accepted in FORMATS:
        answers = Chunks()
        async for chunk in whole_result(store, job):
            answers.append(chunk)
        file = await tables.write(job.operation, parameters_of(job), FORMATS[accepted], answers)
        headers["Content-Length"] = str(os.fstat(file.fileno()).st_size)
        return StreamingResponse(_content(file), headers=headers, media_type=accepted.decode())
    if accepted == b"text/csv":
        return StreamingResponse(csv_result(store, job), headers=headers, media_type="text/csv; charset=utf-8")
    return StreamingResponse(json_result(store, job, model), headers=headers, media_type="application/json")


def _importance(found: dict[str, Any], accept: bytes | None) -> Response:
    """What a job has summed up, as JSON, as a table, or as a picture."""
    match preferred(accept, (b"application/json", b"text/csv", SVG)):
        case b"text/csv":
            return Response(importance_csv(found), media_type="text/csv; charset=utf-8")
        case b"image/svg+xml":
            return Response(importance_bars(found, f"{found['model']} {found['version']}"), media_type=SVG.decode())
    return Response(msgspec.json.encode(found), media_type="application/json")


async def _content(file: IO[bytes]) -> AsyncIterator[bytes]:
    """The bytes of a file of our own, so that a slow client holds none of them in memory."""
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _model_of(registry: Registry, job: Job) -> LoadedModel | None:
    """The version that a job asks; None if it is not served any more."""
    try:
        return registry.get(job.model, job.version)
    except (ModelNotFound, VersionNotFound):
        return None


async def _submit(store: JobStore, request: JobRequest) -> Job:
    job = await store.submit(request)
    if request.idempotency_key == job.idempotency_key != "" and job.unique_key != request.unique_key:
        raise InvalidRequest("this Idempotency-Key was used for another request")
    return job


def query_of(parameters: QueryParams) -> dict[str, Any]:
    """The query by name; a name that appears twice has a list."""
    lists = {name: parameters.getlist(name) for name in parameters}
    return {name: values[0] if len(values) == 1 else values for name, values in lists.items()}


def submitted(job: Job) -> Response:
    """The response to a request for a job."""
    return answer_json(job_view(job), 202, {"Location": f"/v1/jobs/{job.id}"})


def job_view(job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    view: dict[str, Any] = {
        "id": job.id,
        "operation": job.operation,
        "model": job.model,
        "version": job.version,
        "state": job.state,
        "progress": round(job.progress, 4),
        "attempts": job.attempts,
        "chunks": job.chunks,
        "chunks_done": job.chunks_done,
        "created": _iso(job.created),
        "started": _iso(job.started),
        "finished": _iso(job.finished),
    }
    if job.error:
        view["error"] = public_error(job)
    if job.cancelling and not job.is_finished:
        view["cancelling"] = True
    if job.state == "done":
        view["result"] = f"/v1/jobs/{job.id}/result"
    return view


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
