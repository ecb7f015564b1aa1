"""What the version before kept of schedules is known to the first scheduler of this one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import redis
import structlog

from serving.jobs.job import ScheduleCounts, ScheduleRecord
from serving.schedules.scheduler import Scheduler
from serving.schedules.takeover import OLD_FILENAME, take_over
from tests.serving.schedules.conftest import Instances, schedule

pytestmark = pytest.mark.anyio

ENTRY = schedule("x: every 10s: toy")
COUNTS = ScheduleCounts(fired=3, missed=2, coalesced=1)
OLD = {"x": ScheduleRecord(last=1_700_000_010.0, counts=COUNTS), "gone": ScheduleRecord(last=1_700_000_000.5)}


def leave_behind(instances: Instances, raw: redis.Redis) -> None:
    """What the version before has left."""
    if instances.kind == "sqlite":
        script = Path(__file__).with_name("schedules_before.sql").read_text()
        with closing(sqlite3.connect(instances.directory / OLD_FILENAME)) as connection:
            connection.executescript(script)
        return
    prefix = "forkserve:{schedules}:"
    raw.sadd(prefix + "names", "x", "gone")
    raw.hset(
        prefix + "schedule:x",
        mapping={"last": "1700000010.0", "job": "job-1", "fired": "3", "missed": "2", "coalesced": "1"},
    )
    raw.hset(prefix + "schedule:gone", mapping={"last": "1700000000.5", "owner": "me", "held_until": "1700000005.5"})


def scheduler(instances: Instances) -> Scheduler:
    url = instances.url if instances.kind == "redis" else ""
    old = partial(take_over, directory=instances.directory, redis_url=url)
    return Scheduler([ENTRY], instances.open(), take_over=old, clock=instances.clock)


async def test_the_last_firings_and_counts_are_taken_over_once(instances: Instances, raw: redis.Redis) -> None:
    leave_behind(instances, raw)
    instances.clock.now = 1_700_000_015.0
    with structlog.testing.capture_logs() as lines:
        await scheduler(instances).turn()
    store = instances.open()
    assert await store.schedules() == OLD
    assert (await store.counts()).queued == 0, "the firing at 10 is not repeated"
    assert [(line["event"], set(line["schedules"])) for line in lines] == [("Schedules taken over", set(OLD))]
    instances.clock.now += 10
    for _ in range(2):
        with structlog.testing.capture_logs() as lines:
            await scheduler(instances).turn()
        assert "Schedules taken over" not in [line["event"] for line in lines]
    assert (await store.schedules())["x"].counts.fired == 4
    assert (await store.counts()).queued == 1


async def test_a_file_that_cannot_be_read_is_logged_and_holds_nothing_up(instances: Instances) -> None:
    (instances.directory / OLD_FILENAME).write_bytes(b"no database, but long enough to be looked at" * 100)
    with structlog.testing.capture_logs() as lines:
        await scheduler(instances).turn()
    expected = ["Old schedules cannot be read"] if instances.kind == "sqlite" else []
    assert [line["event"] for line in lines] == expected
    assert list(await instances.open().schedules()) == ["x"]
