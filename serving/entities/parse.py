"""Reads records out of the body of a request: one, or several."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from serving.entities.record import Record, make_record
from serving.errors import InvalidRequest, TooManyInstances
from serving.predict.request_body import decode

TURN = 25
"""Records that are read in a row, at most 5 ms of them; then others have their turn on the event loop."""

USAGE = 'send an object: {"values": {...}}, or {"records": [...]} for several'


class RecordBody(msgspec.Struct, forbid_unknown_fields=True):
    """One record of several."""

    values: dict[str, Any]
    time: str | None = None
    id: str | None = None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """One record, or several."""

    values: dict[str, Any] | None = None
    time: str | None = None
    id: str | None = None
    records: list[RecordBody] | None = None


_decoder = msgspec.json.Decoder(Body)


async def read_records(entity: str, body: bytes, most: int) -> list[Record]:
    """At least one record and at most `most`. Raises NotJSON, InvalidRequest naming the record, TooManyInstances."""
    sent = decode(_decoder, body, USAGE)
    if sent.records is None:
        if sent.values is None:
            raise InvalidRequest(USAGE)
        return [make_record(entity, sent.values, sent.time, sent.id)]
    if (sent.values, sent.time, sent.id) != (None, None, None) or not sent.records:
        raise InvalidRequest(USAGE)
    if len(sent.records) > most:
        raise TooManyInstances(f"a request may have {most} records; send more as several requests")
    records = []
    for index, one in enumerate(sent.records):
        if index % TURN == TURN - 1:
            await asyncio.sleep(0)
        try:
            records.append(make_record(entity, one.values, one.time, one.id))
        except InvalidRequest as error:
            raise InvalidRequest(f"record {index}: {error}") from None
    return records
