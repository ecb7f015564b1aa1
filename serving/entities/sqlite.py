"""Records and outcomes in a SQLite file, the default without Supabase; its statements are in `sqlite.sql`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, TypeVar

from registry.quality import Sums, add_up
from serving.entities.record import Entity, Judged, Outcome, Period, Record, Span, now, start_of, stored_record
from serving.entities.store import KEEP_QUALITY, UNKNOWN_AFTER, Added, Deleted, other_kind, room_of_writer
from serving.errors import InvalidRequest, StoreFull
from serving.storage.sqlite import Database, reads, writes
from serving.storage.statements import statements

T = TypeVar("T")

_sql = statements(__file__, "sqlite.sql")

JSON_COLUMNS = ("instance", "outcome", "prediction", "probabilities")
SPANS: tuple[Span, ...] = ("hour", "day")

_entity_of = attrgetter("entity")
_model_of = attrgetter("model")


class SQLiteEntityStore:
    """An EntityStore in `data.db`, shared by the processes of this box."""

    state = "disabled"

    def __init__(self, directory: Path, *, keep_records: int, keep_outcomes: int, keep_in_all: int = 1_000_000) -> None:
        """Keep `keep_records` of each entity, `keep_outcomes` of each model, and `keep_in_all` records in all."""
        self._database = Database(directory / "data.db", tuple(_sql(f"schema_{step}") for step in range(1, 5)))
        self._keep_records = keep_records
        self._keep_outcomes = keep_outcomes
        self._keep_in_all = keep_in_all

    @writes
    def add_records(
        self, connection: Connection, records: Sequence[Record], kind: str | None = None, writer: str = ""
    ) -> Added:
        added = Added()
        for entity, group in groupby(sorted(records, key=_entity_of), key=_entity_of):
            added += self._add_records(connection, entity, list(group), kind, writer)
        return added

    def _add_records(
        self, connection: Connection, entity: str, records: Sequence[Record], kind: str | None, writer: str
    ) -> Added:
        counts = connection.execute(_sql("counts"), {"writer": writer}).fetchone()
        room = room_of_writer(writer, self._keep_in_all, counts["all_records"], counts["records_of_writer"])
        present, kind_now = connection.execute(_sql("state_of_entity"), (entity,)).fetchone()
        if present and kind not in (None, kind_now):
            raise InvalidRequest(other_kind(entity, kind_now))
        keep = min(self._keep_records, present + room)
        if not keep:
            raise StoreFull
        (last,) = connection.execute(_sql("last_record")).fetchone()
        kind = kind_now if present else kind
        rows = [_record_row(record.of(writer)) | {"kind": kind or "", "writer": writer} for record in records]
        new = connection.executemany(_sql("add_record"), rows).rowcount
        if present + new > keep:
            connection.execute(_sql("trim_records_of_entity"), (entity, keep))
        (kept,) = connection.execute(_sql("count_new_records"), (entity, last)).fetchone()
        return Added(kept, len(records) - new, new - kept)

    @reads
    def newest(self, connection: Connection, entity: str, limit: int, after: str | None = None) -> list[Record]:
        named = {"entity": entity, "limit": limit, "after": after}
        if after is None:
            return [_record(row) for row in connection.execute(_sql("newest_records"), named)]
        if connection.execute(_sql("has_record"), (entity, after)).fetchone() is None:
            raise InvalidRequest(UNKNOWN_AFTER)
        return [_record(row) for row in connection.execute(_sql("newest_records_before"), named)]

    @reads
    def entities(self, connection: Connection, limit: int, after: str = "", kind: str | None = None) -> list[Entity]:
        rows = connection.execute(_sql("entities"), {"limit": limit, "after": after, "kind": kind})
        return [
            Entity(row["entity"], row["kind"], row["records"], datetime.fromisoformat(row["newest"])) for row in rows
        ]

    async def delete_records(self, entity: str, before: datetime | None = None, writer: str | None = None) -> int:
        return await self._erased(self._delete_records(entity, before, writer))

    async def delete_entity(self, entity: str, writer: str | None = None) -> Deleted:
        return await self._erased(self._delete_entity(entity, writer))

    async def delete_writer(self, writer: str) -> tuple[list[str], Deleted]:
        return await self._erased(self._delete_writer(writer))

    async def _erased(self, deletion: Awaitable[T]) -> T:
        """What a deletion returns, once no byte is left of what it deleted."""
        deleted = await deletion
        await self._database.erase()
        return deleted

    @writes
    def _delete_records(
        self, connection: Connection, entity: str, before: datetime | None = None, writer: str | None = None
    ) -> int:
        named = {"entity": entity, "before": None if before is None else _text(before), "writer": writer}
        return connection.execute(_sql("delete_records"), named).rowcount

    @writes
    def _delete_entity(self, connection: Connection, entity: str, writer: str | None = None) -> Deleted:
        named = {"entity": entity, "before": None, "writer": writer}
        records = connection.execute(_sql("delete_records"), named).rowcount
        return Deleted(records, connection.execute(_sql("delete_outcomes_of_entity"), named).rowcount)

    @writes
    def _delete_writer(self, connection: Connection, writer: str) -> tuple[list[str], Deleted]:
        entities = [row["entity"] for row in connection.execute(_sql("entities_of_writer"), (writer,))]
        records = connection.execute(_sql("delete_records_of_writer"), (writer,)).rowcount
        return entities, Deleted(records, connection.execute(_sql("delete_outcomes_of_writer"), (writer,)).rowcount)

    @writes
    def add_outcomes(self, connection: Connection, outcomes: Sequence[Outcome], writer: str = "") -> Added:
        added = Added()
        for model, group in groupby(sorted(outcomes, key=_model_of), key=_model_of):
            added += self._add_outcomes(connection, model, list(group), writer)
        return added

    def _add_outcomes(self, connection: Connection, model: str, outcomes: Sequence[Outcome], writer: str) -> Added:
        (last,) = connection.execute(_sql("last_outcome")).fetchone()
        rows = [_outcome_row(outcome) | {"writer": writer} for outcome in outcomes]
        new = connection.executemany(_sql("add_outcome"), rows).rowcount
        # one in a hundred more may be kept: to rank them takes too long to be done for every outcome
        (count,) = connection.execute(_sql("count_outcomes"), (model,)).fetchone()
        if count > self._keep_outcomes + self._keep_outcomes // 100:
            connection.execute(_sql("trim_outcomes_of_model"), (model, self._keep_outcomes))
        kept = {row["id"] for row in connection.execute(_sql("ids_of_new_outcomes"), (model, last))}
        self._add_quality(connection, model, {one.id: one for one in reversed(outcomes) if one.id in kept}.values())
        return Added(len(kept), len(outcomes) - new, new - len(kept))

    def _add_quality(self, connection: Connection, model: str, outcomes: Iterable[Outcome]) -> None:
        """Add up sums by version, hour and day; of equal ids the first outcome is the one that is stored."""
        periods: dict[tuple[str, Span, str], list[Sums]] = {}
        for one in outcomes:
            for span in SPANS if one.sums else ():
                periods.setdefault((one.version, span, _text(start_of(span, one.time))), []).append(one.sums)
        for (version, span, start), sums in periods.items():
            key = {"model": model, "version": version, "span": span, "start": start}
            before = connection.execute(_sql("sums_of_period"), key).fetchone()
            total = add_up(sums if before is None else (_sums(before["sums"]), *sums))
            connection.execute(_sql("set_sums_of_period"), key | {"sums": _json_of_sums(total)})
        if periods:
            connection.execute(_sql("delete_old_quality"), {"before": _text(now() - KEEP_QUALITY)})

    @reads
    def outcomes(self, connection: Connection, model: str, limit: int) -> list[Outcome]:
        return _outcomes(connection.execute(_sql("last_outcomes"), (model, limit)))

    @reads
    def outcomes_of_entity(self, connection: Connection, entity: str, limit: int) -> list[Outcome]:
        return _outcomes(connection.execute(_sql("outcomes_of_entity"), (entity, limit)))

    @reads
    def judged(self, connection: Connection, model: str, version: str, limit: int) -> list[Judged]:
        rows = connection.execute(_sql("judged_outcomes"), (model, version, limit))
        return [Judged(*map(_value, row)) for row in rows]

    @reads
    def quality(
        self, connection: Connection, model: str, span: Span, since: datetime, version: str | None = None
    ) -> list[Period]:
        named = {"model": model, "span": span, "since": _text(since), "version": version}
        rows = connection.execute(_sql("periods"), named)
        return [Period(row["version"], datetime.fromisoformat(row["start"]), _sums(row["sums"])) for row in rows]

    @writes
    def mark_quality(self, connection: Connection, model: str, version: str, *, is_low: bool) -> bool:
        statement = _sql("mark_low_quality" if is_low else "unmark_low_quality")
        return connection.execute(statement, (model, version)).rowcount > 0

    async def probe(self) -> None:
        await self._database.probe()

    @reads
    def risk(self, connection: Connection) -> str | None:
        records = dict(tuple(row) for row in connection.execute(_sql("records_by_writer")))
        rooms = [room_of_writer(name, self._keep_in_all, sum(records.values()), kept) for name, kept in records.items()]
        return StoreFull.REASON if 0 in rooms else None

    async def close(self) -> None:
        await self._database.close()


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _record_row(record: Record) -> dict[str, str]:
    data = json.dumps(record.values)
    return {"entity": record.entity, "id": record.id, "time": _text(record.time), "data": data}


def _record(row: Row) -> Record:
    try:
        values = json.loads(row["data"])
    except ValueError:
        values = None
    return stored_record(row["entity"], row["id"], row["time"], values, row["kind"])


def _outcome_row(outcome: Outcome) -> dict[str, str | None]:
    columns = {name: getattr(outcome, name) for name in ("model", "version", "id", "entity")}
    return columns | {"time": _text(outcome.time)} | {name: json.dumps(getattr(outcome, name)) for name in JSON_COLUMNS}


def _value(column: str | None) -> Any:
    """Probabilities are null in rows of earlier versions."""
    return None if column is None else json.loads(column)


def _sums(text: str) -> dict[str, Decimal]:
    return {name: Decimal(value) for name, value in json.loads(text).items()}


def _json_of_sums(sums: Sums) -> str:
    return json.dumps({name: str(value) for name, value in sums.items()}, separators=(",", ":"))


def _outcomes(rows: Iterable[Row]) -> list[Outcome]:
    return [_outcome(row) for row in rows]


def _outcome(row: Row) -> Outcome:
    columns: dict[str, Any] = {name: row[name] for name in ("model", "version", "id", "entity")}
    values: dict[str, Any] = {name: _value(row[name]) for name in JSON_COLUMNS}
    return Outcome(time=datetime.fromisoformat(row["time"]), **columns, **values)
