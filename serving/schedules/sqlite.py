"""Schedules in a SQLite file: what is used without Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from sqlite3 import Connection

from serving.schedules.store import Record, ScheduleCounts, record_from
from serving.storage.sqlite import Database

MIGRATIONS = (
    """
    create table schedules (
        name text primary key,
        last real not null,
        job text not null default '',
        owner text not null default '',
        held_until real not null default 0,
        fired integer not null default 0,
        missed integer not null default 0,
        coalesced integer not null default 0,
        overlaps_prevented integer not null default 0,
        failed integer not null default 0,
        overlap_incidents integer not null default 0
    );
    """,
)

HOLD = """
    update schedules set owner = :owner, held_until = :clock + :seconds
    where name = :name and (owner = :owner or held_until <= :clock) returning *"""

ADD = """
    update schedules set fired = fired + :fired, missed = missed + :missed, coalesced = coalesced + :coalesced,
        overlaps_prevented = overlaps_prevented + :overlaps_prevented, failed = failed + :failed,
        overlap_incidents = overlap_incidents + :overlap_incidents
    where name = :name"""

SETTLE = """
    update schedules set last = max(last, :upto), job = case when :job = '' then job else :job end, owner = '',
        held_until = 0
    where name = :name and owner = :owner"""


class SQLiteScheduleStore:
    """A ScheduleStore in `schedules.db`, shared by the processes of this box."""

    def __init__(self, directory: Path, *, busy_seconds: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(directory / "schedules.db", MIGRATIONS, busy_seconds=busy_seconds)
        self._clock = clock

    async def hold(self, name: str, owner: str, seconds: float, now: float) -> Record | None:
        def work(connection: Connection) -> Record | None:
            connection.execute("insert into schedules (name, last) values (?, ?) on conflict do nothing", (name, now))
            values = {"name": name, "owner": owner, "seconds": seconds, "clock": self._clock()}
            row = connection.execute(HOLD, values).fetchone()
            return None if row is None else record_from(dict(row))

        return await self._database.write(work)

    async def settle(self, name: str, owner: str, upto: float, counts: ScheduleCounts, job: str = "") -> bool:
        def work(connection: Connection) -> bool:
            values = {"name": name, "owner": owner, "upto": upto, "job": job}
            if not connection.execute(SETTLE, values).rowcount:
                return False
            connection.execute(ADD, {"name": name} | asdict(counts))
            return True

        return await self._database.write(work)

    async def release(self, name: str, owner: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                "update schedules set owner = '', held_until = 0 where name = ? and owner = ?", (name, owner)
            )

        await self._database.write(work)

    async def add(self, name: str, counts: ScheduleCounts) -> None:
        def work(connection: Connection) -> None:
            connection.execute(ADD, {"name": name} | asdict(counts))

        await self._database.write(work)

    async def records(self) -> Mapping[str, Record]:
        def work(connection: Connection) -> dict[str, Record]:
            return {row["name"]: record_from(dict(row)) for row in connection.execute("select * from schedules")}

        return await self._database.read(work)

    async def close(self) -> None:
        await self._database.close()
