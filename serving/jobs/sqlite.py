"""Jobs in a SQLite file: what is used without Redis."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from sqlite3 import Connection, Row

from serving.errors import JobNotFound, QueueFull
from serving.jobs import statements
from serving.jobs.job import Backoff, Counts, Job, JobRequest, Lease, Submitted, job_from, new_id, printable
from serving.jobs.schema import MIGRATIONS
from serving.jobs.store import MAX_QUEUED, RETRY_AFTER_SECONDS
from serving.storage.sqlite import Database

PRUNED_AT_ONCE = 500

REQUESTED = ("operation", "model", "version", "parameters", "max_attempts", "unique_key", "idempotency_key", "mutex")


class SQLiteJobStore:
    """A JobStore in `jobs.db`, shared by the processes of this box."""

    def __init__(
        self,
        directory: Path,
        *,
        max_queued: int = MAX_QUEUED,
        retry_after: float = RETRY_AFTER_SECONDS,
        backoff: Backoff | None = None,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_queued` jobs may wait; who comes later is told to come back after `retry_after` seconds."""
        self._database = Database(directory / "jobs.db", MIGRATIONS, busy_seconds=busy_seconds)
        self._max_queued = max_queued
        self._retry_after = retry_after
        self._backoff = backoff or Backoff()
        self._clock = clock

    async def submit(self, request: JobRequest) -> Submitted:
        keys = {name: getattr(request, name) for name in ("unique_key", "idempotency_key", "mutex")}

        def work(connection: Connection) -> Submitted:
            same = connection.execute(statements.SAME_JOB, keys).fetchone()
            if same is not None:
                return Submitted(_job(same), is_new=False)
            queued = connection.execute("select count(*) from jobs where state = 'queued'").fetchone()[0]
            if queued >= self._max_queued:
                raise QueueFull(self._retry_after)
            return Submitted(self._insert(connection, request), is_new=True)

        return await self._database.write(work)

    def _insert(self, connection: Connection, request: JobRequest) -> Job:
        now, job_id = self._clock(), new_id()
        values = {name: getattr(request, name) for name in REQUESTED}
        values |= {"id": job_id, "chunks": len(request.inputs), "created": now, "due": now + request.delay}
        row = connection.execute(statements.INSERT, values).fetchone()
        chunks = ((job_id, chunk, data) for chunk, data in enumerate(request.inputs))
        connection.executemany("insert into inputs (job, chunk, data) values (?, ?, ?)", chunks)
        return _job(row)

    async def claim(self, owner: str, lease_seconds: float, operations: Sequence[str]) -> Job | None:
        def work(connection: Connection) -> Job | None:
            now = self._clock()
            connection.execute(statements.REAP, {"now": now})
            values = {"now": now, "owner": owner, "lease": lease_seconds, "operations": json.dumps(list(operations))}
            row = connection.execute(statements.CLAIM, values).fetchone()
            return None if row is None else _job(row)

        return await self._database.write(work)

    async def heartbeat(self, job_id: str, owner: str, lease_seconds: float, progress: float = 0.0) -> Lease:
        def work(connection: Connection) -> Lease:
            values = (self._clock() + lease_seconds, min(progress, 1.0), job_id, owner)
            return _lease(connection.execute(statements.RENEW, values).fetchone())

        return await self._database.write(work)

    async def checkpoint(self, job_id: str, owner: str, lease_seconds: float, chunk: int, result: bytes) -> Lease:
        def work(connection: Connection) -> Lease:
            row = connection.execute(statements.RENEW, (self._clock() + lease_seconds, 0.0, job_id, owner)).fetchone()
            if row is None:
                return "lost"
            if not 0 <= chunk < row["chunks"]:
                raise ValueError(f"the job has no chunk {chunk}")
            kept = connection.execute(
                "insert into results (job, chunk, data) values (?, ?, ?) on conflict do nothing",
                (job_id, chunk, result),
            )
            if kept.rowcount:
                connection.execute(statements.COUNT_CHUNK, (job_id,))
            return _lease(row)

        return await self._database.write(work)

    async def finish(self, job_id: str, owner: str) -> Job | None:
        def work(connection: Connection) -> Job | None:
            job = _find(connection, job_id)
            if job is not None and job.state == "done" and job.owner == owner:
                return job  # told twice
            if job is None or not _holds(job, owner):
                return None
            if job.chunks_done < job.chunks:
                raise ValueError(f"{job.chunks - job.chunks_done} chunks of the job are missing")
            return self._end(connection, job_id, "done", "")

        return await self._database.write(work)

    async def fail(self, job_id: str, owner: str, error: str, *, permanent: bool = False) -> Job | None:
        def work(connection: Connection) -> Job | None:
            job = _find(connection, job_id)
            if job is None or not _holds(job, owner):
                return None
            if job.cancelling:
                return self._end(connection, job_id, "cancelled", printable(error))
            if permanent or job.stalled >= job.max_attempts:
                return self._end(connection, job_id, "failed", printable(error))
            due = self._clock() + self._backoff.delay(job.stalled, random.random())  # noqa: S311 - spreads retries
            values = (due, printable(error), job_id)
            return _job(
                connection.execute(
                    "update jobs set state = 'queued', due = ?, error = ? where id = ? returning *", values
                ).fetchone()
            )

        return await self._database.write(work)

    async def release(self, job_id: str, owner: str) -> Job | None:
        def work(connection: Connection) -> Job | None:
            job = _find(connection, job_id)
            if job is None or not _holds(job, owner):
                return None
            if job.cancelling:
                return self._end(connection, job_id, "cancelled", job.error)
            released = "update jobs set state = 'queued', stalled = max(0, stalled - 1) where id = ? returning *"
            return _job(connection.execute(released, (job_id,)).fetchone())

        return await self._database.write(work)

    async def cancel(self, job_id: str) -> Job:
        def work(connection: Connection) -> Job:
            connection.execute(statements.REAP, {"now": self._clock()})
            job = _existing(connection, job_id)
            if job.state == "queued":
                return self._end(connection, job_id, "cancelled", job.error)
            connection.execute("update jobs set cancelling = 1 where id = ? and state = 'running'", (job_id,))
            return _existing(connection, job_id)

        return await self._database.write(work)

    async def get(self, job_id: str) -> Job:
        return await self._database.read(lambda connection: _existing(connection, job_id))

    async def input(self, job_id: str, chunk: int) -> bytes:
        def work(connection: Connection) -> bytes:
            row = connection.execute("select data from inputs where job = ? and chunk = ?", (job_id, chunk)).fetchone()
            if row is None:
                raise JobNotFound("there is no such input, or no longer")
            return bytes(row["data"])

        return await self._database.read(work)

    async def missing(self, job_id: str) -> list[int]:
        def work(connection: Connection) -> list[int]:
            chunks = _existing(connection, job_id).chunks
            done = {row["chunk"] for row in connection.execute("select chunk from results where job = ?", (job_id,))}
            return [chunk for chunk in range(chunks) if chunk not in done]

        return await self._database.read(work)

    async def result(self, job_id: str, chunk: int) -> bytes | None:
        def work(connection: Connection) -> bytes | None:
            select = "select data from results where job = ? and chunk = ?"
            row = connection.execute(select, (job_id, chunk)).fetchone()
            return None if row is None else bytes(row["data"])

        return await self._database.read(work)

    async def counts(self) -> Counts:
        def work(connection: Connection) -> Counts:
            states = {row[0]: row[1] for row in connection.execute("select state, count(*) from jobs group by state")}
            oldest = connection.execute("select min(due) from jobs where state = 'queued'").fetchone()[0]
            waited = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
            return Counts(**states, oldest_queued_seconds=waited)

        return await self._database.read(work)

    async def probe(self) -> None:
        await self._database.write(lambda _connection: None)

    async def prune(self, older_than: float, keep: int) -> int:
        def work(connection: Connection) -> int:
            values = {"before": self._clock() - older_than, "keep": keep, "most": PRUNED_AT_ONCE}
            return connection.execute(statements.PRUNE, values).rowcount

        return await self._database.write(work)

    async def close(self) -> None:
        await self._database.close()

    def _end(self, connection: Connection, job_id: str, state: str, error: str) -> Job:
        values = (state, self._clock(), error, state, job_id)
        update = """update jobs set state = ?, finished = ?, error = ?,
            progress = case when ? = 'done' then 1.0 else progress end where id = ? returning *"""
        return _job(connection.execute(update, values).fetchone())


def _job(row: Row) -> Job:
    return job_from(dict(row))


def _find(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute("select * from jobs where id = ?", (job_id,)).fetchone()
    return None if row is None else _job(row)


def _existing(connection: Connection, job_id: str) -> Job:
    job = _find(connection, job_id)
    if job is None:
        raise JobNotFound("there is no such job, or no longer")
    return job


def _holds(job: Job, owner: str) -> bool:
    return job.state == "running" and job.owner == owner


def _lease(renewed: Row | None) -> Lease:
    if renewed is None:
        return "lost"
    return "cancelled" if renewed["cancelling"] else "held"
