"""Stores of both kinds, and more than one scheduler over the same schedules and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from serving.jobs.job import JobRequest
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.jobs.store import JobStore
from serving.schedules.redis import RedisScheduleStore
from serving.schedules.schedule import Action, Queued, Schedule, parse_schedules
from serving.schedules.sqlite import SQLiteScheduleStore
from serving.schedules.store import ScheduleStore
from tests.servers import RedisServer
from tests.serving.conftest import PATIENCE, WallClock


class Instances:
    """Opens the same stores again and again, as if each time in another instance."""

    def __init__(self, kind: str, directory: Path, url: str) -> None:
        self.kind = kind
        self.directory = directory
        self.url = url
        self.clock = WallClock()
        self._opened: list[ScheduleStore | JobStore] = []

    def open(self) -> ScheduleStore:
        store: ScheduleStore
        if self.kind == "redis":
            store = RedisScheduleStore(self.url, timeout=PATIENCE)
        else:
            store = SQLiteScheduleStore(self.directory, busy_seconds=PATIENCE, clock=self.clock)
        self._opened.append(store)
        return store

    def open_jobs(self, max_queued: int = 1000) -> JobStore:
        store: JobStore
        if self.kind == "redis":
            store = RedisJobStore(self.url, timeout=PATIENCE, max_queued=max_queued)
        else:
            store = SQLiteJobStore(self.directory, busy_seconds=PATIENCE, max_queued=max_queued)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


@pytest.fixture(params=["sqlite", "redis"])
async def instances(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: RedisServer, raw: redis.Redis
) -> AsyncIterator[Instances]:
    instances = Instances(request.param, tmp_path, shared_server.url)
    yield instances
    await instances.close()


@pytest.fixture
def store(instances: Instances) -> ScheduleStore:
    return instances.open()


def toy_job(mutex: str = "") -> JobRequest:
    """A job that no runner here does by itself."""
    return JobRequest(operation="toy", inputs=[b""], mutex=mutex)


def schedule(text: str, action: Action | None = None, grace: float = 60.0) -> Schedule:
    """The one that `text` says; the action `toy` queues a job."""
    (parsed,) = parse_schedules(text, {"toy": action or Queued(toy_job)}, grace=grace)
    return parsed
