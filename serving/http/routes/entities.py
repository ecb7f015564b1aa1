"""`/v1/entities`: store, list and delete records of entities, predict for the newest, follow predictions as events."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from msgspec import Meta

from serving.entities.notifier import topic_of
from serving.entities.predictor import EntityAnswer, check_entity
from serving.entities.record import (
    ID,
    MAX_COLUMNS,
    MAX_NAME_CHARACTERS,
    Record,
    check_kind,
    make_record,
    parse_time,
)
from serving.entities.store import EntityStore
from serving.errors import EntityNotFound, InvalidRequest, NotPermitted, TooManyInstances
from serving.http.body import answer_json, describe_body, read_boolean, read_json, turns_of_client
from serving.http.edge import note
from serving.http.keys import Key, key_of
from serving.http.protocols.route import parse_timeout
from serving.http.sse import EventStream, LastEventId, Streams
from serving.monitoring.predictions.erasure import Erasure
from serving.predict.json_body import LargeBodyDecoder
from serving.predict.pieces import Turns
from serving.service import Service

COUNT = re.compile(r"[1-9][0-9]{0,8}")

USAGE = 'send an object: {"values": {...}}, or {"records": [...]} for several'

PAGE = 100
"""Entities or records in one answer."""

OWN_ONLY = "a key of scope write deletes what it has stored itself; all is deleted with a key of scope admin"

Kind = Annotated[str | None, Query(description="Kind of the entity, to which models are bound; default that it has")]
Limit = Annotated[str | None, Query(description=f"Number of items, at most {PAGE}")]
After = Annotated[str, Query(description="`next` of the page before")]

GIVEN_TIME = Meta(description="ISO 8601; default now", extra_json_schema={"format": "date-time"})
GIVEN_ID = Meta(
    description="A record that is sent twice with the same id is stored once",
    extra_json_schema={"pattern": f"^{ID.pattern}$"},
)


Values = Annotated[
    dict[str, Any],
    Meta(
        description="Columns: numbers, strings, booleans or null; each model takes its features from them",
        extra_json_schema={
            "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
            "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_CHARACTERS},
            "minProperties": 1,
            "maxProperties": MAX_COLUMNS,
        },
    ),
]


class RecordBody(msgspec.Struct, forbid_unknown_fields=True):
    """One record of several."""

    values: Values
    time: Annotated[str | None, GIVEN_TIME] = None
    id: Annotated[str | None, GIVEN_ID] = None


SEVERAL = Meta(description="Several records, instead of one", extra_json_schema={"minItems": 1})


class RecordsBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request: one record, or several."""

    values: Values | None = None
    time: Annotated[str | None, GIVEN_TIME] = None
    id: Annotated[str | None, GIVEN_ID] = None
    records: Annotated[list[RecordBody], SEVERAL] | None = None


NULL = {"type": "null"}
ONE_RECORD = {"required": ["values"], "properties": {"values": {"type": "object"}, "records": NULL}}
MANY_RECORDS = {
    "required": ["records"],
    "properties": {"records": {"type": "array"}, "values": NULL, "time": NULL, "id": NULL},
}

_body = LargeBodyDecoder(RecordsBody, USAGE, "a request may have {} records; send more as several requests")


async def read_records(entity: str, body: bytes, max_records: int, turns: Turns) -> list[Record]:
    """One record or more. Raises NotJSON, InvalidRequest naming the record, TooManyInstances, what `turns` raise."""
    sent = await _body.decode(body, max_records, turns)
    if sent.records is None:
        if sent.values is None:
            raise InvalidRequest(USAGE)
        return [make_record(entity, sent.values, sent.time, sent.id)]
    if (sent.values, sent.time, sent.id) != (None, None, None) or not sent.records:
        raise InvalidRequest(USAGE)
    if len(sent.records) > max_records:
        raise TooManyInstances(f"a request may have {max_records} records; send more as several requests")
    records = []
    for index, one in enumerate(sent.records):
        await turns.pause()
        try:
            records.append(make_record(entity, one.values, one.time, one.id))
        except InvalidRequest as error:
            raise InvalidRequest(f"record {index}: {error}; nothing is stored") from None
    return records


def entities_router(service: Service, streams: Streams) -> APIRouter:
    """Routes for records of entities, the predictions for their newest ones, and streams of these."""
    router = APIRouter(prefix="/v1/entities", tags=["entities"])
    limits = service.limits

    @router.post(
        "/{entity}/records",
        status_code=201,
        summary="Store one record or several",
        responses={200: {"description": "All of them had been stored before"}},
        openapi_extra=describe_body(RecordsBody, oneOf=[ONE_RECORD, MANY_RECORDS]),
    )
    async def store(entity: str, request: Request, kind: Kind = None) -> Response:
        check_entity(entity)
        kind = None if kind is None else check_kind(kind)
        body = await read_json(request, limits.max_body_bytes)
        with turns_of_client(request.receive) as turns:
            records = await read_records(entity, body, limits.max_instances, turns)
        added = await service.shared.entities.add_records(records, kind, key_of(request.scope).name)
        if added.stored:
            service.notifier.add(entity, records, request.state.request_id, len(body))
        answer = {"entity": entity, **added.said(), "ids": [one.id for one in records]}
        return answer_json(answer, 201 if added.stored else 200)

    @router.get("/{entity}/predictions", summary="Predictions of all models for the newest records, newest first")
    async def predict(
        request: Request,
        entity: str,
        models: Annotated[
            str | None, Query(description="Names separated by commas; default all models that are bound to entities")
        ] = None,
        kind: Kind = None,
        limit: Annotated[str | None, Query(description="Number of records, at most MAX_LIMIT_CHECKINS")] = None,
        explain: Annotated[str, Query(description="`true` adds the contribution of each column")] = "false",
        x_request_timeout: Annotated[
            str | None, Header(description="Seconds; may shorten the deadline, never lengthen it")
        ] = None,
    ) -> Response:
        started = time.perf_counter()
        key = key_of(request.scope)
        answer = await service.predictor.predict(
            entity,
            names=_names(models, key),
            may_use=key.may_use,
            kind=None if kind is None else check_kind(kind),
            limit=_count(limit),
            explained=read_boolean("explain", explain),
            timeout=None if x_request_timeout is None else parse_timeout(x_request_timeout.encode()),
        )
        seconds = time.perf_counter() - started
        if service.access_log:
            details = {"entity": entity, "records": len(answer.records), "stale": answer.stale}
            note(request.scope, f"Prediction of {len(answer.models)} models completed in {seconds:.3f}s", details)
        headers = _headers(answer, seconds if service.show_timing else None)
        return Response(answer.content(), headers=headers, media_type="application/json")

    _add_events(router, service, streams)
    _add_listings(router, service.shared.entities)
    _add_deletions(router, service.shared.entities, service.erasure)
    return router


def _add_events(router: APIRouter, service: Service, streams: Streams) -> None:
    @router.get(
        "/{entity}/events",
        summary="Predictions for each record that arrives, as server-sent events",
        status_code=200,
        response_class=EventStream,
    )
    async def follow(entity: str, request: Request, after: LastEventId) -> Response:
        check_entity(entity)
        for model in service.predictor.bound():
            key_of(request.scope).check_model(model.name)  # an event has the answers of all of them
        return EventStream(streams, streams.follow(topic_of(entity), after, request.scope))


def _names(models: str | None, key: Key) -> list[str] | None:
    """The models that are asked for, None for all. Raises NotPermitted for one that the key may not use."""
    if models is None:
        return None
    names = [name for name in models.split(",") if name]
    for name in names:
        key.check_model(name)
    return names


def _add_listings(router: APIRouter, entities: EntityStore) -> None:
    @router.get("", summary="Entities that have records, by name")
    async def list_entities(limit: Limit = None, after: After = "", kind: Kind = None) -> Response:
        count = page_of(limit)
        found = await entities.entities(count, after, None if kind is None else check_kind(kind))
        return answer_json({"entities": found, "next": found[-1].entity if len(found) == count else None})

    @router.get("/{entity}/records", summary="Records, newest first")
    async def list_records(entity: str, limit: Limit = None, after: After = "") -> Response:
        check_entity(entity)
        count = page_of(limit)
        found = await entities.newest(entity, count, after or None)
        if not found and not after:
            raise EntityNotFound
        records = [{"id": record.shown_id, "time": record.time, "values": record.values} for record in found]
        kind = found[0].kind if found else None
        following = found[-1].id if len(found) == count else None
        return answer_json({"entity": entity, "kind": kind, "records": records, "next": following})


def _add_deletions(router: APIRouter, entities: EntityStore, erasure: Erasure) -> None:
    """Routes that delete: with a key of scope `write` what it has stored itself, with one of scope `admin` all."""

    async def check_deleted(entity: str, count: int) -> None:
        """Raise EntityNotFound, or NotPermitted, if nothing was deleted."""
        if not count:
            raise NotPermitted(OWN_ONLY, "admin") if await entities.newest(entity, 1) else EntityNotFound

    @router.delete(
        "/{entity}", summary="Delete all that is kept of an entity: records, outcomes, events, logged predictions"
    )
    async def delete(entity: str, request: Request) -> Response:
        check_entity(entity)
        erased = await erasure.of_entity(entity, deletes_of(key_of(request.scope)))
        await check_deleted(entity, erased.total)
        deleted = {name: count for name, count in asdict(erased).items() if name != "jobs"}
        return answer_json({"entity": entity, "deleted": deleted})

    @router.delete("/{entity}/records", summary="Delete records")
    async def delete_records(
        entity: str,
        request: Request,
        before: Annotated[str | None, Query(description="Only those of earlier times, ISO 8601; default all")] = None,
    ) -> Response:
        check_entity(entity)
        moment = None if before is None else parse_time(before)
        deleted = await entities.delete_records(entity, moment, deletes_of(key_of(request.scope)))
        if moment is None:
            await check_deleted(entity, deleted)
        return answer_json({"entity": entity, "deleted": {"records": deleted}})


def deletes_of(key: Key) -> str | None:
    """The only writer whose records and outcomes a key may delete; None if it may delete those of all."""
    return None if "admin" in key.scopes else key.name


def _headers(answer: EntityAnswer, seconds: float | None) -> dict[str, str]:
    """Without `seconds`, nothing of what has been cached."""
    headers = {}
    if seconds is not None:
        headers["Server-Timing"] = f"total;dur={seconds * 1e3:.3f}"
        if sources := answer.sources:
            headers["X-Cache"] = sources.pop() if len(sources) == 1 else "mixed"
    if answer.stale:
        headers["X-Records"] = "stale"
    if any(model.fallback for model, _ in answer.models):
        headers["X-Model-Fallback"] = "true"
    if any(model.manifest.forced for model, _ in answer.models):
        headers["X-Model-Forced"] = "true"
    return headers


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not COUNT.fullmatch(text):
        raise InvalidRequest("limit must be a positive integer")
    return int(text)


def page_of(text: str | None) -> int:
    """The items of a page. Raises InvalidRequest."""
    return min(_count(text) or PAGE, PAGE)
