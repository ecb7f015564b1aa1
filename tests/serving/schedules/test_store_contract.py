"""What every ScheduleStore does, on SQLite and on Redis."""

from __future__ import annotations

import asyncio

import pytest

from serving.schedules.store import Record, ScheduleCounts, ScheduleStore
from tests.serving.conftest import until
from tests.serving.schedules.conftest import Instances

pytestmark = pytest.mark.anyio

FIRED = ScheduleCounts(fired=1)


async def test_a_schedule_begins_when_it_is_first_seen(instances: Instances) -> None:
    one, two = instances.open(), instances.open()
    assert await one.records() == {}
    assert await one.hold("a", "me", 60, 1000.5) == Record(last=1000.5)
    assert await two.hold("a", "you", 60, 2000.0) is None
    assert await two.records() == {"a": Record(last=1000.5)}


async def test_only_one_holds_a_schedule_however_many_ask_at_once(instances: Instances) -> None:
    stores = [instances.open() for _ in range(4)]
    for name in ("a", "b", "c"):
        held = await asyncio.gather(*(store.hold(name, str(n), 60, 1.0) for n, store in enumerate(stores)))
        assert len([record for record in held if record is not None]) == 1


async def test_who_holds_it_may_hold_it_further(instances: Instances) -> None:
    store = instances.open()
    await store.hold("a", "me", 0.05, 1.0)
    assert await store.hold("a", "me", 60, 2.0) == Record(last=1.0)
    await store.hold("b", "me", 0.05, 1.0)
    instances.clock.now += 0.1
    await until(lambda: store.hold("b", "you", 60, 2.0))  # so the time of the first is over, too
    assert await store.hold("a", "you", 60, 2.0) is None


async def test_settling_counts_moves_on_and_lets_go(store: ScheduleStore) -> None:
    await store.hold("a", "me", 60, 1.0)
    counts = ScheduleCounts(fired=1, missed=2, coalesced=3, overlaps_prevented=4, failed=5, overlap_incidents=6)
    assert await store.settle("a", "me", 10.0, counts, "job-1")
    assert await store.hold("a", "you", 60, 20.0) == Record(last=10.0, job="job-1", counts=counts)
    assert await store.settle("a", "you", 20.0, FIRED)
    record = (await store.records())["a"]
    assert (record.last, record.job, record.counts.fired, record.counts.missed) == (20.0, "job-1", 2, 2)


async def test_who_has_lost_the_hold_settles_nothing(instances: Instances) -> None:
    store = instances.open()
    await store.hold("a", "me", 0.05, 1.0)
    instances.clock.now += 0.1
    record = await until(lambda: store.hold("a", "you", 60, 2.0))
    assert record == Record(last=1.0)
    assert not await store.settle("a", "me", 10.0, FIRED, "job-1")
    assert not await store.settle("b", "me", 10.0, FIRED)
    await store.release("a", "me")
    assert await store.hold("a", "me", 60, 2.0) is None
    assert await store.records() == {"a": Record(last=1.0)}


async def test_a_hold_that_ran_out_and_that_nobody_took_is_still_good(instances: Instances) -> None:
    store = instances.open()
    await store.hold("a", "me", 0.0, 1.0)
    instances.clock.now += 1
    assert await store.settle("a", "me", 10.0, FIRED)


async def test_released_schedule_is_as_it_was(store: ScheduleStore) -> None:
    await store.hold("a", "me", 60, 1.0)
    await store.release("a", "me")
    assert await store.hold("a", "you", 60, 5.0) == Record(last=1.0)


async def test_settled_times_never_go_back(store: ScheduleStore) -> None:
    for upto in (20.0, 10.0):
        await store.hold("a", "me", 60, 1.0)
        assert await store.settle("a", "me", upto, FIRED)
    assert (await store.records())["a"].last == 20.0


async def test_counting_needs_no_hold_and_makes_no_schedule(store: ScheduleStore) -> None:
    await store.hold("a", "me", 60, 1.0)
    await store.add("a", ScheduleCounts(overlap_incidents=1))
    await store.add("unknown", ScheduleCounts(overlap_incidents=1))
    assert await store.records() == {"a": Record(last=1.0, counts=ScheduleCounts(overlap_incidents=1))}


async def test_times_keep_their_fractions(store: ScheduleStore) -> None:
    await store.hold("a", "me", 60, 1_700_000_000.123456)
    assert (await store.records())["a"].last == 1_700_000_000.123456


async def test_schedules_are_there_for_the_next_process_and_after_closing(instances: Instances) -> None:
    store = instances.open()
    await store.hold("a", "me", 60, 1.0)
    await store.close()
    assert await store.records() == await instances.open().records() == {"a": Record(last=1.0)}
