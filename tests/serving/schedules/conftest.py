"""Job stores of both kinds, and more than one scheduler over the same jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from harness.servers import RedisServer
from serving.jobs.job import JobRequest
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.jobs.store import JobStore, QueueLimits
from serving.schedules.parse import Action, Schedule, parse_schedules
from tests.serving.conftest import Opener


class Instances(Opener):
    """Their jobs and schedules."""

    def open(self, max_queued: int = 1000) -> JobStore:
        store: JobStore = self.open_either(SQLiteJobStore, RedisJobStore, limits=QueueLimits(jobs=max_queued))
        return store


@pytest.fixture(params=["sqlite", "redis"])
async def instances(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: RedisServer, raw: redis.Redis
) -> AsyncIterator[Instances]:
    instances = Instances(request.param, tmp_path, shared_server.url)
    yield instances
    await instances.close()


def toy_job(mutex: str = "") -> JobRequest:
    """A job that no runner here does by itself."""
    return JobRequest(operation="toy", inputs=[b""], mutex=mutex)


def schedule(text: str, action: Action | None = None, grace: float = 60.0) -> Schedule:
    """The one that `text` says; the action `toy` queues a job."""
    (parsed,) = parse_schedules(text, {"toy": action or Action(toy_job)}, grace=grace)
    return parsed
