"""Events in a SQLite file: what is used without Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection

from serving.events.log import MAX_EVENTS, Event, Page, first_id
from serving.storage.sqlite import Database

TRIMMED_EVERY = 64
"""Appended events after which the log is cut back; so it may be so much longer than it should."""

WAIT_SECONDS = 2.0

MIGRATIONS = (
    """
    create table events (id integer primary key, topic text not null, kind text not null, data blob not null);
    create index events_by_topic on events (topic, id);
    -- one row; `floor` is the highest id that was forgotten
    create table span (floor integer not null, latest integer not null, appended integer not null default 0);
    """,
)


class SQLiteEventLog:
    """An EventLog in `events.db`, shared by the processes of this box; looked at every `poll_seconds`."""

    def __init__(
        self,
        directory: Path,
        *,
        max_events: int = MAX_EVENTS,
        poll_seconds: float = 0.1,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(directory / "events.db", MIGRATIONS, busy_seconds=busy_seconds)
        self._max_events = max_events
        self._poll_seconds = poll_seconds
        self._clock = clock

    async def append(self, topic: str, kind: str, data: bytes) -> int:
        def work(connection: Connection) -> int:
            now = first_id(int(self._clock() * 1000))
            span = connection.execute("select latest, appended from span").fetchone()
            if span is None:
                # what an earlier log may have held is not here
                connection.execute("insert into span (floor, latest) values (?, ?)", (now - 1, now - 1))
                span = {"latest": now - 1, "appended": 0}
            event_id: int = max(now, span["latest"] + 1)
            connection.execute(
                "insert into events (id, topic, kind, data) values (?, ?, ?, ?)", (event_id, topic, kind, data)
            )
            connection.execute("update span set latest = ?, appended = appended + 1", (event_id,))
            if (span["appended"] + 1) % TRIMMED_EVERY == 0:
                self._trim(connection)
            return event_id

        return await self._database.write(work)

    def _trim(self, connection: Connection) -> None:
        select = "select id from events order by id desc limit 1 offset ?"
        last = connection.execute(select, (self._max_events,)).fetchone()
        if last is not None:
            _forget(connection, last["id"])

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        def work(connection: Connection) -> Page:
            span = connection.execute("select floor, latest from span").fetchone() or {"floor": 0, "latest": 0}
            if topic is None:
                rows = connection.execute("select * from events where id > ? order by id limit ?", (after, limit))
            else:
                select = "select * from events where topic = ? and id > ? order by id limit ?"
                rows = connection.execute(select, (topic, after, limit))
            events = [Event(row["id"], row["topic"], row["kind"], row["data"]) for row in rows]
            return Page(events, span["floor"], span["latest"])

        return await self._database.read(work)

    async def wait(self, after: int) -> None:
        def latest(connection: Connection) -> int:
            span = connection.execute("select latest from span").fetchone()
            return 0 if span is None else int(span["latest"])

        deadline = time.monotonic() + WAIT_SECONDS
        while await self._database.read(latest) <= after and time.monotonic() < deadline:  # noqa: ASYNC110 - others write
            await asyncio.sleep(self._poll_seconds)

    async def prune(self, older_than: float) -> int:
        def work(connection: Connection) -> int:
            before = first_id(int((self._clock() - older_than) * 1000))
            last = connection.execute("select max(id) from events where id < ?", (before,)).fetchone()[0]
            return 0 if last is None else _forget(connection, last)

        return await self._database.write(work)

    async def close(self) -> None:
        await self._database.close()


def _forget(connection: Connection, last: int) -> int:
    connection.execute("update span set floor = ?", (last,))
    return connection.execute("delete from events where id <= ?", (last,)).rowcount
