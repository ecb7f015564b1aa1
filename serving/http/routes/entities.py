"""`/v1/entities`: send in records of an entity, ask all models about its newest ones, follow what they say."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Header, Query, Request, Response

from serving.entities.notifier import Arrival, Arrivals, topic_of
from serving.entities.parse import read_records
from serving.entities.predictor import EntityAnswer, EntityPredictor, check_entity
from serving.entities.store import Source
from serving.errors import InvalidRequest
from serving.http.clients import network_of
from serving.http.edge import check_json, read_body
from serving.http.routes.predict import parse_timeout
from serving.http.routes.streams import LastSeen
from serving.http.sse import EventStream, Frames, Streams, frame, opening

log = structlog.get_logger(__name__)

COUNT = re.compile(r"[1-9][0-9]{0,8}")
TRUTHS = {"true": True, "1": True, "false": False, "0": False, "": False}

RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "values": {
            "type": "object",
            "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
            "description": "Columns, of which each model takes its own",
        },
        "time": {"type": "string", "description": "ISO 8601; now if it is not given"},
        "id": {"type": "string", "description": "A record that is sent again with its id is stored once"},
    },
    "required": ["values"],
    "additionalProperties": False,
}
SEVERAL: dict[str, Any] = {
    "type": "object",
    "properties": {"records": {"type": "array", "minItems": 1, "items": RECORD}},
    "required": ["records"],
    "additionalProperties": False,
}


def entities_router(
    source: Source,
    predictor: EntityPredictor,
    arrivals: Arrivals,
    streams: Streams,
    *,
    max_body_bytes: int,
    max_records: int,
    access_log: bool,
) -> APIRouter:
    """Records are kept by `source`; what the models say of new ones is told by `arrivals`."""
    router = APIRouter(prefix="/v1/entities", tags=["entities"])

    @router.post(
        "/{entity}/records",
        status_code=201,
        summary="Store a record, or several",
        responses={200: {"description": "All of them were stored before"}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"oneOf": [RECORD, SEVERAL]}}},
            }
        },
    )
    async def store(entity: str, request: Request) -> Response:
        check_entity(entity)
        headers = dict(request.scope["headers"])
        check_json(headers)
        records = await read_records(entity, await read_body(headers, request.receive, max_body_bytes), max_records)
        stored = await source.add_records(records)
        if stored:
            arrivals.add(Arrival(entity, records, request.state.request_id))
        answer = {"entity": entity, "stored": stored, "ids": [record.id for record in records]}
        return Response(msgspec.json.encode(answer), 201 if stored else 200, media_type="application/json")

    @router.get("/{entity}/predictions", summary="What the models say of the newest records, newest first")
    async def predict(
        entity: str,
        models: Annotated[str | None, Query(description="Names, with commas; all that are bound to entities")] = None,
        limit: Annotated[str | None, Query(description="Records; never more than MAX_LIMIT_CHECKINS")] = None,
        explain: Annotated[str, Query(description="`true` adds what each column contributes")] = "false",
        x_request_timeout: Annotated[
            str | None, Header(description="Seconds; may shorten the deadline, never lengthen it")
        ] = None,
    ) -> Response:
        started = time.perf_counter()
        answer = await predictor.predict(
            entity,
            names=None if models is None else [name for name in models.split(",") if name],
            limit=_count(limit),
            explained=_truth(explain),
            timeout=None if x_request_timeout is None else parse_timeout(x_request_timeout.encode()),
        )
        seconds = time.perf_counter() - started
        if access_log:
            said = f"Prediction of {len(answer.models)} models completed in {seconds:.3f}s"
            log.info(said, entity=entity, records=len(answer.records), stale=answer.stale)
        return Response(answer.content(), headers=_headers(answer, seconds), media_type="application/json")

    @router.get(
        "/{entity}/events",
        summary="What the models say of each record that arrives, as server-sent events",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def follow(entity: str, request: Request, after: LastSeen) -> Response:
        check_entity(entity)
        address = network_of(request.scope).hex()
        return EventStream(streams, _frames(streams, entity, after, address))

    return router


async def _frames(streams: Streams, entity: str, after: int | None, address: str) -> Frames:
    """From now on, or from where the client left off; without an end."""
    async with streams.hub.subscribe(topic_of(entity), after=after, address=address) as stream:
        yield opening(stream.position)
        async for event in stream:
            yield frame(event.kind, event.data, event.id)


def _headers(answer: EntityAnswer, seconds: float) -> dict[str, str]:
    sources = answer.sources
    headers = {"Server-Timing": f"total;dur={seconds * 1e3:.3f}"}
    if sources:
        headers["X-Cache"] = sources.pop() if len(sources) == 1 else "mixed"
    if answer.stale:
        headers["X-Records"] = "stale"
    if any(one.model.fallback for one in answer.models):
        headers["X-Model-Fallback"] = "true"
    return headers


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not COUNT.fullmatch(text):
        raise InvalidRequest("limit is a number from 1")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise InvalidRequest("explain is true or false")
    return TRUTHS[text.lower()]
