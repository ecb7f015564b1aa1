"""`GET /v1/jobs/{id}/events`: what happens to a job, from its beginning or from where the client left off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from serving.errors import InvalidRequest, JobNotFound, StoreUnavailable
from serving.events.log import EventLog
from serving.http.clients import network_of
from serving.http.sse import EventStream, Frames, Streams, frame, opening
from serving.jobs.job import Job

FINAL = frozenset({"done", "failed", "cancelled"})
"""The kinds of the events after which nothing happens to a job any more."""

LOOK_HEARTBEATS = 4
"""Heartbeats of silence after which a stream looks whether its job is finished."""

LAST_EVENT_SECONDS = 2.0
"""A job's last event is told a moment after its state has changed."""

FindJob = Callable[[str], Awaitable[Job]]

EVENT_ID = re.compile(r"[0-9]{1,19}")
LARGEST_ID = 2**63 - 1


async def last_seen(
    header: Annotated[str | None, Header(alias="last-event-id", description="The last event that was seen")] = None,
    query: Annotated[
        str | None, Query(alias="last_event_id", description="The same, for clients that cannot set the header")
    ] = None,
) -> int | None:
    """The id of the event after which a client resumes. Raises InvalidRequest."""
    text = header or query
    if not text:
        return None
    if not EVENT_ID.fullmatch(text) or int(text) > LARGEST_ID:
        raise InvalidRequest("Last-Event-ID is the id of an event")
    return int(text)


LastSeen: TypeAlias = Annotated[int | None, Depends(last_seen)]


def streams_router(streams: Streams, events: EventLog, find_job: FindJob) -> APIRouter:
    """Streams of jobs; `find_job` raises JobNotFound. The topic of a job's events is its id."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.get(
        "/{job_id}/events",
        summary="What happens to a job, as server-sent events",
        response_class=Response,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            204: {"description": "The job is finished and nothing is left to be told; do not come back"},
        },
    )
    async def follow_job(job_id: str, request: Request, last_seen: LastSeen) -> Response:
        after = last_seen or 0
        job = await find_job(job_id)
        if job.is_finished:
            page = await events.read(job_id, after, 1)
            if not page.events and not page.is_gap(after):
                return Response(status_code=204)
        address = network_of(request.scope).hex()
        return EventStream(streams, _frames(streams, find_job, job, after, address))

    return router


async def _frames(streams: Streams, find_job: FindJob, job: Job, after: int, address: str) -> Frames:
    """To the job's last event. Should that be lost, because the log was away, the job's state says what it was."""
    async with streams.hub.subscribe(job.id, after=after, address=address, follow=not job.is_finished) as stream:
        yield opening(stream.position)
        looked, patience = job, None if job.is_finished else LOOK_HEARTBEATS * streams.heartbeat_seconds
        while True:
            try:
                async with asyncio.timeout(patience):
                    event = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                if looked.is_finished:
                    break
                looked = await _look(find_job, looked)
                patience = LAST_EVENT_SECONDS if looked.is_finished else patience
                continue
            yield frame(event.kind, event.data, event.id)
            if event.kind in FINAL:
                return
        if looked.is_finished and (stream.complete or not stream.ended):
            yield frame(looked.state, msgspec.json.encode({"state": looked.state, "error": looked.error}))


async def _look(find_job: FindJob, job: Job) -> Job:
    """The job as it is now; as it was, if that cannot be known."""
    try:
        return await find_job(job.id)
    except (JobNotFound, StoreUnavailable):
        return job
