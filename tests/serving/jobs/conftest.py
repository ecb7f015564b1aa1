"""Stores of both kinds, and more than one instance over the same jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from harness.servers import RedisServer
from serving.events.log import EventLog
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.job import Backoff, Job, JobRequest
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore, jobs_database
from serving.jobs.store import JobStore
from tests.serving.conftest import Opener

OPERATIONS = ("explain", "predict")
LEASE = 60.0
SOON = Backoff(first=0.01, longest=0.05)


def job_request(**changes: Any) -> JobRequest:
    """A job of three chunks."""
    return JobRequest(
        **({"operation": "explain", "inputs": (b"0", b"1", b"2"), "model": "m", "version": "1"} | changes)
    )


class Jobs(Opener):
    """Their jobs."""

    def open(self, **options: Any) -> JobStore:
        store: JobStore = self.open_either(SQLiteJobStore, RedisJobStore, **({"backoff": SOON} | options))
        return store

    def open_events(self) -> EventLog:
        """Of the log in which the jobs' changes are told."""
        log: EventLog = self.open_either(_open_sqlite_log, RedisEventLog)
        return log

    def let_pass(self, seconds: float) -> None:
        """SQLite is given the time; Redis has its own, and the test waits for what it expects."""
        self.clock.now += seconds


def _open_sqlite_log(directory: Path, *, busy_seconds: float, **options: Any) -> SQLiteEventLog:
    return SQLiteEventLog(jobs_database(directory, busy_seconds=busy_seconds), **options)


@pytest.fixture(params=["sqlite", "redis"])
async def jobs(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: RedisServer, raw: redis.Redis
) -> AsyncIterator[Jobs]:
    jobs = Jobs(request.param, tmp_path, shared_server.url)
    yield jobs
    await jobs.close()


@pytest.fixture
def store(jobs: Jobs) -> JobStore:
    return jobs.open()


@pytest.fixture
def events(jobs: Jobs) -> EventLog:
    return jobs.open_events()


async def adds_a_job(store: JobStore, request: JobRequest) -> bool:
    """Submit it, and see whether there is a job more."""
    before = await _count(store)
    await store.submit(request)
    return await _count(store) == before + 1


async def _count(store: JobStore) -> int:
    counts = await store.counts()
    return counts.queued + counts.running + counts.done + counts.failed + counts.cancelled


async def claim(store: JobStore, owner: str = "a", lease_seconds: float = LEASE) -> Job | None:
    return await store.claim(owner, lease_seconds, OPERATIONS)


async def claimed(store: JobStore, owner: str = "a", lease_seconds: float = LEASE) -> Job:
    job = await claim(store, owner, lease_seconds)
    assert job is not None
    return job


async def complete(store: JobStore, job: Job, owner: str = "a") -> None:
    """All that is missing, and the end."""
    for chunk in await store.missing(job.id):
        assert await store.checkpoint(job.id, owner, LEASE, chunk, b"result %d" % chunk) == "held"
    assert await store.finish(job.id, owner) is not None
