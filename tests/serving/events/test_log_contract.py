"""What every log of events must do, whichever it is."""

from __future__ import annotations

import asyncio

import pytest
import redis

from serving.events.log import Event, EventLog, Page
from tests.serving.conftest import PATIENCE, until
from tests.serving.events.conftest import Logs, append_many

pytestmark = pytest.mark.anyio


async def test_events_are_read_in_the_order_in_which_they_were_told(log: EventLog) -> None:
    told = [await log.append("job:1", kind, data) for kind, data in [("progress", b"\x00\xff"), ("done", b"")]]
    page = await log.read("job:1", 0, 10)
    assert page.events == [
        Event(told[0], "job:1", "progress", b"\x00\xff"),
        Event(told[1], "job:1", "done", b""),
    ]
    assert told[0] < told[1] == page.latest
    assert page.floor == told[0] - 1


async def test_empty_log_has_nothing_and_misses_nothing(log: EventLog) -> None:
    page = await log.read(None, 0, 10)
    assert page == Page([], 0, 0)
    assert not page.is_gap(0)


async def test_reading_goes_on_after_an_id_and_up_to_a_limit(log: EventLog) -> None:
    ids = await append_many(log, 5)
    assert [event.id for event in (await log.read("t", ids[1], 2)).events] == ids[2:4]
    assert (await log.read("t", ids[4], 2)).events == []
    span = await log.read("t", 0, 0)
    assert (span.events, span.latest) == ([], ids[4])


async def test_topics_are_read_alone_or_together(log: EventLog) -> None:
    ids = [await log.append(topic, "tick", b"") for topic in ("a", "b", "a", "")]
    assert [event.id for event in (await log.read("a", 0, 10)).events] == [ids[0], ids[2]]
    assert [event.id for event in (await log.read("b", 0, 10)).events] == [ids[1]]
    assert [event.id for event in (await log.read(None, 0, 10)).events] == ids
    assert (await log.read("c", 0, 10)).events == []


async def test_topic_is_found_behind_thousands_of_others(logs: Logs) -> None:
    log = logs.open(max_events=5000)
    await asyncio.gather(*[log.append("noise", "tick", b"") for _ in range(2100)])
    wanted = await append_many(log, 3)
    assert [event.id for event in (await log.read("t", 0, 10)).events] == wanted
    assert len((await log.read(None, 0, 2050)).events) == 2050


async def test_ids_grow_also_when_the_clock_goes_back(logs: Logs) -> None:
    log = logs.open()
    first = await append_many(log, 3)
    logs.clock.now -= 3600
    second = await append_many(log, 3)
    assert sorted({*first, *second}) == first + second


async def test_instances_that_tell_at_once_get_ids_of_their_own(logs: Logs) -> None:
    told = await asyncio.gather(*[append_many(logs.open(), 20) for _ in range(4)])
    ids = [event_id for part in told for event_id in part]
    assert len(set(ids)) == 80
    assert [event.id for event in (await logs.open().read(None, 0, 100)).events] == sorted(ids)


async def test_oldest_events_are_forgotten_and_who_was_before_them_is_told(logs: Logs) -> None:
    log = logs.open(max_events=200)
    ids = await append_many(log, 600)
    page = await log.read(None, 0, 1000)
    kept = [event.id for event in page.events]
    assert 200 <= len(kept) <= 400
    assert kept == ids[-len(kept) :]
    assert page.is_gap(ids[0])
    assert page.is_gap(ids[-len(kept) - 2])
    assert not page.is_gap(kept[0])
    assert not page.is_gap(ids[-1])
    assert not page.is_gap(0)


async def test_id_of_the_future_or_of_a_lost_log_is_a_gap(logs: Logs, raw: redis.Redis) -> None:
    log = logs.open()
    ids = await append_many(log, 3)
    assert (await log.read(None, 0, 0)).is_gap(ids[-1] + 1)
    await log.close()
    raw.flushall()
    for file in logs.directory.iterdir():
        file.unlink()
    assert (await log.read(None, 0, 0)).is_gap(ids[-1])

    async def past() -> bool:  # Redis goes on in the next millisecond
        logs.clock.now += 1
        return await log.append("t", "tick", b"") > ids[-1] + (1 << 20)

    await until(past)
    page = await log.read(None, 0, 0)
    assert page.is_gap(ids[-1])
    assert not page.is_gap(page.latest)


async def test_old_events_are_pruned_and_who_has_seen_them_misses_nothing(logs: Logs) -> None:
    log = logs.open()
    ids = await append_many(log, 3)
    assert await log.prune(3600) == 0
    assert await log.prune(1e10) == 0, "older than the epoch"
    logs.clock.now += 0.02
    pruned = 0

    async def all_gone() -> bool:
        nonlocal pruned
        pruned += await log.prune(0.01)
        return pruned == 3

    await until(all_gone)
    page = await log.read(None, 0, 10)
    assert (page.events, page.latest) == ([], ids[-1])
    assert page.is_gap(ids[1])
    assert not page.is_gap(ids[2])
    more = await append_many(log, 1)
    assert [event.id for event in (await log.read(None, ids[-1], 10)).events] == more


async def test_part_of_the_log_is_pruned(logs: Logs) -> None:
    log = logs.open()
    old = await log.append("t", "tick", b"")
    logs.clock.now += 100

    async def without_the_old() -> Page | None:
        """Redis has its own clock: what comes after a new event may take longer than this is younger than the old."""
        new = await log.append("t", "tick", b"")
        milliseconds = (new - old) >> 20
        await log.prune(milliseconds / 2000)
        page = await log.read(None, 0, 1000)
        ids = [event.id for event in page.events]
        return page if new in ids and old not in ids else None

    page = await until(without_the_old)
    assert page.is_gap(old - 1)
    assert not page.is_gap(page.events[0].id)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting does not end by itself."""
    for name in ("events.sqlite.WAIT_SECONDS", "events.redis.BLOCK_SECONDS", "storage.redis.BLOCK_SECONDS"):
        monkeypatch.setattr(f"serving.{name}", 10 * PATIENCE)


@pytest.mark.usefixtures("endless")
async def test_waiting_ends_when_another_instance_tells_something(logs: Logs) -> None:
    reader, writer = logs.open(), logs.open()
    seen = (await append_many(reader, 1))[0]
    await reader.wait(seen - 1)
    waiting = asyncio.create_task(reader.wait(seen))
    await writer.append("t", "tick", b"")
    async with asyncio.timeout(PATIENCE):
        await waiting


@pytest.mark.usefixtures("endless")
async def test_waiting_for_a_log_that_is_not_there_yet(logs: Logs) -> None:
    waiting = asyncio.create_task(logs.open().wait(0))
    await logs.open().append("t", "tick", b"")
    async with asyncio.timeout(PATIENCE):
        await waiting


async def test_closed_log_can_be_used_again(log: EventLog) -> None:
    ids = await append_many(log, 1)
    await log.close()
    await log.close()
    assert [event.id for event in (await log.read(None, 0, 10)).events] == ids


async def test_a_topic_is_dropped_alone_and_costs_others_nothing(logs: Logs) -> None:
    log = logs.open(max_events=5000)
    ids = [await log.append(topic, "tick", b"") for topic in ("a", "b") * 1100]
    assert await log.drop("a") == 1100
    assert await log.drop("a") == 0
    page = await log.read(None, ids[0], 3)
    assert [event.id for event in page.events] == [ids[1], ids[3], ids[5]]
    assert not page.is_gap(ids[0])
    assert page.latest == ids[-1]
    again = await log.append("a", "tick", b"")
    assert [event.id for event in (await log.read("a", 0, 9)).events] == [again]
