"""Jobs in a SQLite file, the default without Redis; its statements are in `sqlite.sql`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any

import msgspec

from serving.errors import JobNotFound, QueueFull
from serving.events.sqlite import append_event, create_tables
from serving.jobs.job import (
    Backoff,
    Counts,
    Firing,
    Job,
    JobRequest,
    Lease,
    ScheduleCounts,
    ScheduleRecord,
    job_from,
    new_id,
    printable,
    record_from,
)
from serving.jobs.store import (
    KEPT_FIELDS,
    LOST,
    PRUNE_AT_ONCE,
    RETRY_AFTER_SECONDS,
    TOO_MANY_BYTES,
    TOO_MANY_BYTES_OF_ACCOUNT,
    TOO_MANY_JOBS,
    TOO_MANY_OF_ACCOUNT,
    QueueLimits,
    end_event,
)
from serving.storage.sqlite import Database, Migration, reads, writes
from serving.storage.statements import statements

_sql = statements(__file__, "sqlite.sql")


def jobs_database(directory: Path, *, busy_seconds: float = 5.0) -> Database:
    """Return `jobs.db`, unopened: jobs, since schema 2 events (before in `events.db`), since schema 3 schedules."""
    take_events = partial(create_tables, old_file=directory / "events.db")
    first: tuple[Migration, ...] = (_sql("schema_1"), take_events)
    migrations = (*first, *(_sql(f"schema_{number}") for number in (3, 4, 5, 6, 7)))
    return Database(directory / "jobs.db", migrations, busy_seconds=busy_seconds)


class SQLiteJobStore:
    """A JobStore in `jobs.db`, shared by the processes of this box."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: QueueLimits | None = None,
        backoff: Backoff | None = None,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = jobs_database(directory, busy_seconds=busy_seconds)
        self._limits = limits or QueueLimits()
        self._backoff = backoff or Backoff()
        self._clock = clock

    @writes
    def submit(self, connection: Connection, request: JobRequest) -> Job:
        return self._submit(connection, request)

    def _submit(self, connection: Connection, request: JobRequest) -> Job:
        now, values = self._clock(), {name: getattr(request, name) for name in KEPT_FIELDS}
        values |= {"id": new_id(), "chunks": len(request.inputs), "created": now, "due": now + request.delay}
        values["input_bytes"] = request.size
        same = _one(connection, "same_job", **values)
        if same is not None:
            return _job(same)
        self._check_room(connection, request)
        job = _job(_one(connection, "insert", **values))
        chunks = ((job.id, chunk, data) for chunk, data in enumerate(request.inputs))
        connection.executemany(_sql("insert_input"), chunks)
        return job

    def _check_room(self, connection: Connection, request: JobRequest) -> None:
        """Raises QueueFull."""
        limits, size = self._limits, request.size
        jobs, held = _one(connection, "waiting")
        if jobs >= limits.jobs:
            raise QueueFull(RETRY_AFTER_SECONDS, TOO_MANY_JOBS)
        if size and held + size > limits.bytes:
            raise QueueFull(RETRY_AFTER_SECONDS, TOO_MANY_BYTES)
        if not request.account:
            return
        max_jobs, max_bytes = limits.of_account()
        jobs, held = _one(connection, "waiting_of_account", account=request.account)
        if jobs >= max_jobs:
            raise QueueFull(RETRY_AFTER_SECONDS, TOO_MANY_OF_ACCOUNT)
        if size and held + size > max_bytes:
            raise QueueFull(RETRY_AFTER_SECONDS, TOO_MANY_BYTES_OF_ACCOUNT)

    @writes
    def claim(self, connection: Connection, owner: str, lease_seconds: float, operations: Sequence[str]) -> Job | None:
        self._reap(connection)
        now, wanted = self._clock(), json.dumps(list(operations))
        connection.execute(_sql("mend_due"), {"now": now, "longest": self._backoff.longest})
        row = _one(connection, "claim", now=now, owner=owner, lease=lease_seconds, operations=wanted)
        return None if row is None else _job(row)

    @writes
    def heartbeat(
        self, connection: Connection, job_id: str, owner: str, lease_seconds: float, progress: float = 0.0
    ) -> Lease:
        before = _held(connection, job_id, owner)
        if before is None:
            return "lost"
        job = self._renew(connection, job_id, lease_seconds, min(progress, 1.0))
        if int(job.progress * 10_000) > int(before.progress * 10_000):
            self._tell(connection, job_id, "progress", progress=round(job.progress, 4))
        return _lease(job)

    @writes
    def checkpoint(
        self, connection: Connection, job_id: str, owner: str, lease_seconds: float, chunk: int, result: bytes
    ) -> Lease:
        if _held(connection, job_id, owner) is None:
            return "lost"
        job = self._renew(connection, job_id, lease_seconds, 0.0)
        if not 0 <= chunk < job.chunks:
            raise ValueError(f"the job has no chunk {chunk}")
        if connection.execute(_sql("keep_result"), (job_id, chunk, result)).rowcount:
            job = _job(_one(connection, "count_chunk", id=job_id, bytes=len(result)))
            self._tell(connection, job_id, "chunk", chunk=chunk, chunks_done=job.chunks_done, chunks=job.chunks)
        return _lease(job)

    @writes
    def finish(self, connection: Connection, job_id: str, owner: str) -> Job | None:
        row = _one(connection, "job", id=job_id)
        if row is not None and (row["state"], row["owner"]) == ("done", owner):
            return _job(row)  # called twice
        job = _held(connection, job_id, owner)
        if job is None:
            return None
        if job.chunks_done < job.chunks:
            raise ValueError(f"{job.chunks - job.chunks_done} chunks of the job are missing")
        return self._end(connection, job_id, "done", "")

    @writes
    def fail(
        self, connection: Connection, job_id: str, owner: str, error: str, *, permanent: bool = False
    ) -> Job | None:
        job = _held(connection, job_id, owner)
        if job is None:
            return None
        if job.cancelling:
            return self._end(connection, job_id, "cancelled", printable(error))
        if permanent or job.stalled >= job.max_attempts:
            return self._end(connection, job_id, "failed", printable(error))
        due = self._clock() + self._backoff.delay(job.stalled, random.random())  # noqa: S311 - spreads retries
        return _job(_one(connection, "requeue", id=job_id, due=due, error=printable(error)))

    @writes
    def release(self, connection: Connection, job_id: str, owner: str) -> Job | None:
        job = _held(connection, job_id, owner)
        if job is None:
            return None
        if job.cancelling:
            return self._end(connection, job_id, "cancelled", job.error)
        return _job(_one(connection, "release", id=job_id))

    @writes
    def cancel(self, connection: Connection, job_id: str) -> Job:
        self._reap(connection)
        job = _existing(connection, job_id)
        if job.state == "queued":
            return self._end(connection, job_id, "cancelled", job.error)
        _one(connection, "ask_to_cancel", id=job_id)
        return _existing(connection, job_id)

    @reads
    def get(self, connection: Connection, job_id: str) -> Job:
        return _existing(connection, job_id)

    @reads
    def input(self, connection: Connection, job_id: str, chunk: int) -> bytes:
        row = _one(connection, "input", id=job_id, chunk=chunk)
        if row is None:
            raise JobNotFound("the input has been deleted")
        return bytes(row["data"])

    @reads
    def missing(self, connection: Connection, job_id: str) -> list[int]:
        chunks = _existing(connection, job_id).chunks
        done = {row["chunk"] for row in connection.execute(_sql("chunks_done"), (job_id,))}
        return [chunk for chunk in range(chunks) if chunk not in done]

    @reads
    def result(self, connection: Connection, job_id: str, chunk: int) -> bytes | None:
        row = _one(connection, "result", id=job_id, chunk=chunk)
        return None if row is None else bytes(row["data"])

    async def delete_of(self, client: str) -> list[str]:
        deleted = await self._delete_of(client)
        await self._database.erase()
        return deleted

    @writes
    def _delete_of(self, connection: Connection, client: str) -> list[str]:
        return [row["id"] for row in connection.execute(_sql("delete_of"), (client,))]

    @reads
    def counts(self, connection: Connection) -> Counts:
        states = dict(tuple(row) for row in connection.execute(_sql("count_by_state")))
        oldest = _one(connection, "oldest_due")["due"]
        waited = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
        return Counts(**states, oldest_queued_seconds=waited)

    async def probe(self) -> None:
        await self._database.probe()

    async def risk(self) -> str | None:
        return None

    @writes
    def prune(self, connection: Connection, older_than: float, keep: int, keep_bytes: int) -> int:
        values = {"before": self._clock() - older_than, "keep": keep, "keep_bytes": keep_bytes, "limit": PRUNE_AT_ONCE}
        return connection.execute(_sql("prune"), values).rowcount

    @reads
    def schedules(self, connection: Connection) -> Mapping[str, ScheduleRecord]:
        return {row["name"]: record_from(dict(row)) for row in connection.execute(_sql("schedules"))}

    @writes
    def fire(self, connection: Connection, firing: Firing) -> ScheduleRecord | None:
        row = _one(connection, "schedule", name=firing.schedule)
        if firing.seen != (row and row["last"]):
            return None
        job, counts = self._fire(connection, firing, before=row["job"] if row else "")
        settled = {"name": firing.schedule, "last": firing.upto, "job": job, **asdict(counts)}
        return record_from(dict(_one(connection, "settle", **settled)))

    @writes
    def pause(self, connection: Connection, schedule: str, *, paused: bool) -> ScheduleRecord:
        return record_from(dict(_one(connection, "pause", name=schedule, now=self._clock(), paused=int(paused))))

    def _fire(self, connection: Connection, firing: Firing, before: str) -> tuple[str, ScheduleCounts]:
        """Submit the job; the schedule's latest job, and what to add to its counts."""
        if firing.request is None:
            return before, firing.counts
        job = self._submit(connection, firing.request)
        if job.idempotency_key != firing.request.idempotency_key:
            return before, replace(firing.counts, overlaps_prevented=1)
        last = None if before == job.id else _one(connection, "job", id=before)
        is_incident = last is not None and not _job(last).is_finished
        if last is not None and not is_incident:
            connection.execute(_sql("remove"), {"id": before})
        return job.id, replace(firing.counts, fired=1, overlap_incidents=int(is_incident))

    async def close(self) -> None:
        await self._database.close()

    def _reap(self, connection: Connection) -> None:
        """Queue again, fail or cancel the jobs whose lease has run out, or ends later than any lease can."""
        for row in connection.execute(_sql("reap"), {"now": self._clock(), "lost": LOST}).fetchall():
            if row["finished"] is not None:
                self._tell_end(connection, _job(row))

    def _renew(self, connection: Connection, job_id: str, lease_seconds: float, progress: float) -> Job:
        values = {"id": job_id, "now": self._clock(), "lease": lease_seconds, "progress": progress}
        return _job(_one(connection, "renew", **values))

    def _end(self, connection: Connection, job_id: str, state: str, error: str) -> Job:
        job = _job(_one(connection, "end", id=job_id, state=state, now=self._clock(), error=error))
        self._tell_end(connection, job)
        return job

    def _tell_end(self, connection: Connection, job: Job) -> None:
        append_event(connection, job.id, job.state, end_event(job), now=self._clock())

    def _tell(self, connection: Connection, job_id: str, kind: str, **data: Any) -> None:
        append_event(connection, job_id, kind, msgspec.json.encode(data), now=self._clock())


def _one(connection: Connection, name: str, /, **values: Any) -> Any:
    """Return the first row of a named statement, or None."""
    return connection.execute(_sql(name), values).fetchone()


def _job(row: Row) -> Job:
    return job_from(dict(row))


def _existing(connection: Connection, job_id: str) -> Job:
    row = _one(connection, "job", id=job_id)
    if row is None:
        raise JobNotFound
    return _job(row)


def _held(connection: Connection, job_id: str, owner: str) -> Job | None:
    """Return the job if it runs under a lease of this owner."""
    row = _one(connection, "held", id=job_id, owner=owner)
    return None if row is None else _job(row)


def _lease(job: Job) -> Lease:
    return "cancelled" if job.cancelling else "held"
