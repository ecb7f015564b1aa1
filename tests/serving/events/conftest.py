"""Logs of both kinds."""

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
from serving.jobs.sqlite import jobs_database
from tests.serving.conftest import Opener


class Logs(Opener):
    """Their events."""

    def open(self, max_events: int = 1000) -> EventLog:
        store: EventLog = self.open_either(_open_sqlite, RedisEventLog, max_events=max_events)
        return store


def _open_sqlite(directory: Path, *, busy_seconds: float, **options: Any) -> SQLiteEventLog:
    return SQLiteEventLog(jobs_database(directory, busy_seconds=busy_seconds), poll_seconds=0.005, **options)


@pytest.fixture(params=["sqlite", "redis"])
async def logs(
    request: pytest.FixtureRequest, tmp_path: Path, shared_server: RedisServer, raw: redis.Redis
) -> AsyncIterator[Logs]:
    logs = Logs(request.param, tmp_path, shared_server.url)
    yield logs
    await logs.close()


@pytest.fixture
def log(logs: Logs) -> EventLog:
    return logs.open()


async def append_many(log: EventLog, count: int, topic: str = "t", start: int = 0) -> list[int]:
    """Events whose data are their numbers; gives their ids."""
    return [await log.append(topic, "tick", b"%d" % number) for number in range(start, start + count)]
