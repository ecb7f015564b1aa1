"""Logs of both kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from serving.events.log import EventLog
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog
from tests.servers import RedisServer
from tests.serving.conftest import PATIENCE, WallClock


class Logs:
    """Opens the same log again and again, as if each time in another process."""

    def __init__(self, kind: str, directory: Path, url: str) -> None:
        self.kind = kind
        self.directory = directory
        self.url = url
        self.clock = WallClock()
        self._opened: list[EventLog] = []

    def open(self, max_events: int = 1000) -> EventLog:
        log: EventLog
        if self.kind == "redis":
            log = RedisEventLog(self.url, max_events=max_events, timeout=PATIENCE)
        else:
            log = SQLiteEventLog(
                self.directory, max_events=max_events, poll_seconds=0.005, busy_seconds=PATIENCE, clock=self.clock
            )
        self._opened.append(log)
        return log

    async def close(self) -> None:
        for log in self._opened:
            await log.close()


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
