"""Events in the SQLite file that also holds the jobs, so that a job's change and its event are one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection

import structlog

from serving.events.log import MAX_EVENTS, Event, Page, first_id
from serving.storage.sqlite import Database, reads, run_script, writes
from serving.storage.statements import statements

log = structlog.get_logger(__name__)

TRIM_EVERY = 64
"""Events appended between two trims; the log may exceed its bound by as many."""

WAIT_SECONDS = 2.0

_sql = statements(__file__, "sqlite.sql")


class SQLiteEventLog:
    """An EventLog in the tables of `create_tables`, shared by the processes of this box and polled for new events."""

    def __init__(
        self,
        database: Database,
        *,
        max_events: int = MAX_EVENTS,
        poll_seconds: float = 0.1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._max_events = max_events
        self._poll_seconds = poll_seconds
        self._clock = clock

    @writes
    def append(self, connection: Connection, topic: str, kind: str, data: bytes) -> int:
        return append_event(connection, topic, kind, data, now=self._clock(), max_events=self._max_events)

    @reads
    def read(self, connection: Connection, topic: str | None, after: int, limit: int) -> Page:
        span = connection.execute(_sql("span")).fetchone() or {"floor": 0, "latest": 0}
        select = _sql("events" if topic is None else "events_of_topic")
        rows = connection.execute(select, {"topic": topic, "after": after, "limit": limit})
        return Page([Event(*row) for row in rows], span["floor"], span["latest"])

    async def wait(self, after: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while (await self.read(None, after, 0)).latest <= after and time.monotonic() < deadline:  # noqa: ASYNC110 - other processes write
            await asyncio.sleep(self._poll_seconds)

    @writes
    def prune(self, connection: Connection, older_than: float) -> int:
        before = first_id(int((self._clock() - older_than) * 1000))
        last = connection.execute(_sql("last_before"), {"before": before}).fetchone()["id"]
        return 0 if last is None else _forget(connection, last)

    async def drop(self, topic: str) -> int:
        gone = await self._drop(topic)
        await self._database.erase()
        return gone

    @writes
    def _drop(self, connection: Connection, topic: str) -> int:
        return connection.execute(_sql("drop_topic"), (topic,)).rowcount

    async def close(self) -> None:
        await self._database.close()


def append_event(
    connection: Connection, topic: str, kind: str, data: bytes, *, now: float, max_events: int = MAX_EVENTS
) -> int:
    """Append an event within the caller's transaction and return its id; `now` is in seconds since the epoch."""
    first = {"first": first_id(int(now * 1000))}
    connection.execute(_sql("begin_span"), first)
    event_id, appended = connection.execute(_sql("take_id"), first).fetchone()
    connection.execute(_sql("insert_event"), (event_id, topic, kind, data))
    if appended % TRIM_EVERY == 0:
        last = connection.execute(_sql("last_beyond"), {"max_events": max_events}).fetchone()
        if last is not None:
            _forget(connection, last["id"])
    return int(event_id)


def create_tables(connection: Connection, old_file: Path) -> None:
    """Migrate: create the tables of events and copy into them what `old_file` holds, where events were before."""
    run_script(connection, _sql("tables"))
    if not old_file.exists():
        return
    try:
        with closing(sqlite3.connect(old_file)) as old:
            events, spans = old.execute(_sql("old_events")).fetchall(), old.execute(_sql("old_span")).fetchall()
    except sqlite3.Error as error:
        log.warning("Old events cannot be read", file=old_file.name, error=str(error))
        return
    connection.executemany(_sql("insert_event"), events)
    connection.executemany(_sql("insert_span"), spans)
    log.info("Events taken over", file=old_file.name, events=len(events))


def _forget(connection: Connection, last: int) -> int:
    connection.execute(_sql("raise_floor"), {"last": last})
    return connection.execute(_sql("forget"), {"last": last}).rowcount
