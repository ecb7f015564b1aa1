"""Records and outcomes in a SQLite file, the default without Supabase; its statements are in `sqlite.sql`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any

from serving.entities.record import Judged, Outcome, Record, stored_record
from serving.storage.sqlite import Database, reads, writes
from serving.storage.statements import statements

_sql = statements(__file__, "sqlite.sql")

JSON_COLUMNS = ("instance", "outcome", "prediction")


class SQLiteEntityStore:
    """An EntityStore in `data.db`, shared by the processes of this box."""

    state = "disabled"

    def __init__(self, directory: Path, *, keep_records: int, keep_outcomes: int, keep_in_all: int = 1_000_000) -> None:
        """Keep `keep_records` of each entity and `keep_outcomes` of each model.

        Clients can create any number of entities, so of all records together only the last `keep_in_all` stored are
        kept, and up to one in a hundred more.
        """
        self._database = Database(directory / "data.db", (_sql("schema_1"), _sql("schema_2")))
        self._keep_records = keep_records
        self._keep_outcomes = keep_outcomes
        self._keep_in_all = keep_in_all
        self._step = max(1, keep_in_all // 100)

    @writes
    def add_records(self, connection: Connection, records: Sequence[Record]) -> int:
        last = _last_number(connection)
        added = connection.executemany(_sql("add_record"), map(_record_row, records)).rowcount if records else 0
        for entity in {record.entity for record in records}:
            connection.execute(_sql("drop_oldest_records_of_entity"), (entity, self._keep_records))
        # numbers have gaps, so rows are counted; which takes too long to be done for every record
        if _last_number(connection) // self._step > last // self._step:
            connection.execute(_sql("drop_first_records"), (self._keep_in_all,))
        return added

    @reads
    def newest(self, connection: Connection, entity: str, limit: int) -> list[Record]:
        return [_record(row) for row in connection.execute(_sql("newest_records"), (entity, limit))]

    @writes
    def add_outcomes(self, connection: Connection, outcomes: Sequence[Outcome]) -> int:
        added = connection.executemany(_sql("add_outcome"), map(_outcome_row, outcomes)).rowcount if outcomes else 0
        for model in {outcome.model for outcome in outcomes}:
            connection.execute(_sql("drop_oldest_outcomes_of_model"), (model, self._keep_outcomes))
        return added

    @reads
    def outcomes(self, connection: Connection, model: str, limit: int) -> list[Outcome]:
        return [_outcome(row) for row in connection.execute(_sql("last_outcomes"), (model, limit))]

    @reads
    def judged(self, connection: Connection, model: str, version: str, limit: int) -> list[Judged]:
        rows = connection.execute(_sql("judged_outcomes"), (model, version, limit))
        return [Judged(*map(json.loads, row)) for row in rows]

    async def probe(self) -> None:
        await self._database.probe()

    async def close(self) -> None:
        await self._database.close()


def _last_number(connection: Connection) -> int:
    number: int | None = connection.execute(_sql("last_record_number")).fetchone()[0]
    return number or 0


def _record_row(record: Record) -> dict[str, str]:
    time = record.time.isoformat(timespec="milliseconds")
    return {"entity": record.entity, "id": record.id, "time": time, "data": json.dumps(record.values)}


def _record(row: Row) -> Record:
    try:
        values = json.loads(row["data"])
    except ValueError:
        values = None
    return stored_record(row["entity"], row["id"], row["time"], values)


def _outcome_row(outcome: Outcome) -> dict[str, str]:
    time = outcome.time.isoformat(timespec="milliseconds")
    columns = {"model": outcome.model, "version": outcome.version, "id": outcome.id, "time": time}
    return columns | {name: json.dumps(getattr(outcome, name)) for name in JSON_COLUMNS}


def _outcome(row: Row) -> Outcome:
    values: dict[str, Any] = {name: json.loads(row[name]) for name in JSON_COLUMNS}
    time = datetime.fromisoformat(row["time"])
    return Outcome(model=row["model"], version=row["version"], id=row["id"], time=time, **values)
