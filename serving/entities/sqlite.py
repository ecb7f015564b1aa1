"""Records and outcomes in a SQLite file: what is used without Supabase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any

from serving.entities.record import Judged, Outcome, Record
from serving.storage.sqlite import Database

MIGRATIONS = (
    """
    -- times are ISO 8601 in UTC, always as long, so that they sort as text
    create table records (
        number integer primary key autoincrement, entity text not null, id text not null, time text not null,
        data text not null, unique (entity, id)
    );
    create index records_by_time on records (entity, time, number);
    create table outcomes (
        number integer primary key autoincrement, model text not null, version text not null, id text not null,
        time text not null, instance text not null, outcome text not null, prediction text not null, unique (model, id)
    );
    create index outcomes_by_model on outcomes (model, number);
    """,
    """
    create index outcomes_judged on outcomes (model, version, number) where prediction <> 'null';
    """,
)

JUDGED = """
    select outcome, prediction from outcomes
    where model = ? and version = ? and prediction <> 'null' order by number desc limit ?"""

FORGET_OLDEST_RECORDS = """
    delete from records where number in (
        select number from records where entity = ? order by time desc, number desc limit -1 offset ?)"""

FORGET_FIRST_RECORDS = """
    delete from records where number <= (select number from records order by number desc limit 1 offset ?)"""

FORGET_OLDEST_OUTCOMES = """
    delete from outcomes where number in (
        select number from outcomes where model = ? order by number desc limit -1 offset ?)"""


class SQLiteEntityStore:
    """A Source in `data.db`, shared by the processes of this box."""

    state = "disabled"

    def __init__(
        self,
        directory: Path,
        *,
        keep_records: int,
        keep_outcomes: int,
        keep_in_all: int = 1_000_000,
        busy_seconds: float = 5.0,
    ) -> None:
        """Of each entity `keep_records` are kept, of each model `keep_outcomes`.

        Entities come and go as clients please: of all records together, the last `keep_in_all` that came are kept, and
        one in a hundred more.
        """
        self._database = Database(directory / "data.db", MIGRATIONS, busy_seconds=busy_seconds)
        self._keep_records = keep_records
        self._keep_outcomes = keep_outcomes
        self._keep_in_all = keep_in_all
        self._step = max(1, keep_in_all // 100)

    async def add_records(self, records: Sequence[Record]) -> int:
        def work(connection: Connection) -> int:
            last = _last_number(connection)
            added = _insert(connection, "records", [_record_columns(record) for record in records])
            for entity in {record.entity for record in records}:
                connection.execute(FORGET_OLDEST_RECORDS, (entity, self._keep_records))
            # numbers have gaps, so rows are counted; which takes too long to be done for every record
            if _last_number(connection) // self._step > last // self._step:
                connection.execute(FORGET_FIRST_RECORDS, (self._keep_in_all,))
            return added

        return await self._database.write(work)

    async def newest(self, entity: str, limit: int) -> list[Record]:
        def work(connection: Connection) -> list[Record]:
            select = "select * from records where entity = ? order by time desc, number desc limit ?"
            return [_record(row) for row in connection.execute(select, (entity, limit))]

        return await self._database.read(work)

    async def add_outcomes(self, outcomes: Sequence[Outcome]) -> int:
        def work(connection: Connection) -> int:
            added = _insert(connection, "outcomes", [_outcome_columns(outcome) for outcome in outcomes])
            for model in {outcome.model for outcome in outcomes}:
                connection.execute(FORGET_OLDEST_OUTCOMES, (model, self._keep_outcomes))
            return added

        return await self._database.write(work)

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        def work(connection: Connection) -> list[Outcome]:
            select = "select * from outcomes where model = ? order by number desc limit ?"
            return [_outcome(row) for row in connection.execute(select, (model, limit))]

        return await self._database.read(work)

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        def work(connection: Connection) -> list[Judged]:
            return [Judged(*map(json.loads, row)) for row in connection.execute(JUDGED, (model, version, limit))]

        return await self._database.read(work)

    async def probe(self) -> None:
        await self._database.write(lambda _connection: None)

    async def close(self) -> None:
        await self._database.close()


def _last_number(connection: Connection) -> int:
    number: int | None = connection.execute("select max(number) from records").fetchone()[0]
    return number or 0


def _insert(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> int:
    if not rows:
        return 0
    names = list(rows[0])
    places = ", ".join(f":{name}" for name in names)
    insert = f"insert or ignore into {table} ({', '.join(names)}) values ({places})"  # noqa: S608 - names of our own
    return connection.executemany(insert, rows).rowcount


def _record_columns(record: Record) -> dict[str, Any]:
    return {
        "entity": record.entity,
        "id": record.id,
        "time": _text(record.time),
        "data": json.dumps(record.values),
    }


def _record(row: Row) -> Record:
    return Record(row["entity"], row["id"], datetime.fromisoformat(row["time"]), json.loads(row["data"]))


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "version": outcome.version,
        "id": outcome.id,
        "time": _text(outcome.time),
        "instance": json.dumps(outcome.instance),
        "outcome": json.dumps(outcome.outcome),
        "prediction": json.dumps(outcome.prediction),
    }


def _outcome(row: Row) -> Outcome:
    return Outcome(
        model=row["model"],
        version=row["version"],
        id=row["id"],
        time=datetime.fromisoformat(row["time"]),
        instance=json.loads(row["instance"]),
        outcome=json.loads(row["outcome"]),
        prediction=json.loads(row["prediction"]),
    )


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
