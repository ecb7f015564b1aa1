"""What schedulers do: each firing once over all of them, never two at a time, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import pytest
import structlog

from serving.errors import QueueFull, StoreUnavailable
from serving.jobs.job import JobRequest
from serving.jobs.store import JobStore
from serving.schedules.schedule import Called, Queued, Schedule
from serving.schedules.scheduler import TAKEN_SECONDS, Scheduler
from serving.schedules.store import ScheduleCounts, ScheduleStore
from tests.serving.conftest import WallClock, until
from tests.serving.schedules.conftest import Instances, schedule, toy_job

pytestmark = pytest.mark.anyio

OWNER, LEASE = "a runner", 3600.0


class Box:
    """Two schedulers, each over stores of its own to the same data, and one clock."""

    def __init__(self, instances: Instances) -> None:
        self.clock: WallClock = instances.clock
        self.clock.now = 1_700_000_005.0
        self.jobs: JobStore = instances.open_jobs()
        self.store: ScheduleStore = instances.open()
        self.schedulers = [Scheduler((), instances.open(), instances.open_jobs(), clock=self.clock) for _ in range(2)]
        for number, scheduler in enumerate(self.schedulers):
            scheduler._owner = f"scheduler {number}"

    async def turn(self, entry: Schedule) -> None:
        """Both look at it at the same time, until neither finds it taken by the other."""
        waiting = self.schedulers
        while waiting:
            looks = await asyncio.gather(*(scheduler.turn(entry) for scheduler in waiting))
            taken = self.clock.now + TAKEN_SECONDS
            waiting = [scheduler for scheduler, look in zip(waiting, looks, strict=True) if look == taken]

    async def counted(self, entry: Schedule) -> dict[str, int]:
        """The counts that are not 0."""
        return {name: count for name, count in asdict(await self._counts(entry)).items() if count}

    async def _counts(self, entry: Schedule) -> ScheduleCounts:
        return (await self.store.records())[entry.name].counts

    async def work(self) -> bool:
        """Do one job, as a runner would; False if there is none."""
        job = await self.jobs.claim(OWNER, LEASE, ["toy"])
        if job is None:
            return False
        await self.jobs.checkpoint(job.id, OWNER, LEASE, 0, b"")
        await self.jobs.finish(job.id, OWNER)
        return True


@pytest.fixture
async def box(instances: Instances) -> Box:
    return Box(instances)


async def test_each_firing_is_one_job_over_all_schedulers(box: Box) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    assert not await box.work(), "nothing is due when a schedule is first seen"
    for _ in range(3):
        box.clock.now += 10
        await box.turn(entry)
        await box.turn(entry)
        assert await box.work()
        assert not await box.work()
    assert await box.counted(entry) == {"fired": 3}
    assert (await box.jobs.counts()).done == 3


async def test_a_firing_is_prevented_while_the_one_before_waits_or_runs(box: Box) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    box.clock.now += 10
    await box.turn(entry)
    box.clock.now += 10
    await box.turn(entry)
    running = await box.jobs.claim(OWNER, LEASE, ["toy"])
    assert running is not None
    box.clock.now += 10
    await box.turn(entry)
    assert await box.counted(entry) == {"fired": 1, "overlaps_prevented": 2}
    await box.jobs.checkpoint(running.id, OWNER, LEASE, 0, b"")
    await box.jobs.finish(running.id, OWNER)
    box.clock.now += 10
    await box.turn(entry)
    assert await box.counted(entry) == {"fired": 2, "overlaps_prevented": 2}


async def test_a_firing_is_prevented_while_another_job_has_its_mutex(box: Box) -> None:
    entry = schedule("x: every 10s: toy one-at-a-time")
    await box.turn(entry)
    await box.jobs.submit(toy_job("one-at-a-time"))
    box.clock.now += 10
    await box.turn(entry)
    assert await box.counted(entry) == {"overlaps_prevented": 1}


async def test_two_schedules_of_the_same_action_do_not_stand_in_each_others_way(box: Box) -> None:
    entries = [schedule(f"{name}: every 10s: toy") for name in ("x", "y")]
    for _ in range(2):
        for entry in entries:
            await box.turn(entry)
        box.clock.now += 10
    assert (await box.jobs.counts()).queued == 2


async def test_what_nobody_was_there_for_fires_once_within_its_grace_and_is_missed_after_it(box: Box) -> None:
    entry = schedule("x: every 10s grace 25: toy")
    await box.turn(entry)
    box.clock.now += 100
    await box.turn(entry)
    assert await box.counted(entry) == {"fired": 1, "missed": 7, "coalesced": 2}
    hourly = schedule("y: 0 * * * * grace 25: toy")
    await box.turn(hourly)
    box.clock.now += 3600
    await box.turn(hourly)
    assert await box.counted(hourly) == {"missed": 1}


async def test_a_scheduler_that_was_killed_after_it_submitted_repeats_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    box.clock.now += 10
    await _die_while(box.schedulers[0], entry, "settle", monkeypatch)
    assert await box.work(), "the job was submitted"
    await _hold_runs_out(box, entry)
    assert not await box.work()
    assert await box.counted(entry) == {"fired": 1}


async def test_a_scheduler_that_was_killed_before_it_submitted_loses_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    box.clock.now += 10
    monkeypatch.setattr(box.schedulers[0]._jobs, "submit", _killed)
    await _die_while(box.schedulers[0], entry, "settle", monkeypatch)
    await _hold_runs_out(box, entry)
    assert await box.work()
    assert await box.counted(entry) == {"fired": 1}


class _Killed(BaseException):
    """Nothing is done after this."""


async def _killed(*_arguments: object) -> None:
    raise _Killed


async def _die_while(scheduler: Scheduler, entry: Schedule, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler dies when it is about to make a call, and cannot even release what it holds."""
    scheduler._hold_seconds = 0.05
    for name in (call, "release"):
        monkeypatch.setattr(scheduler._store, name, _killed)
    with pytest.raises(_Killed):
        await scheduler.turn(entry)


async def _hold_runs_out(box: Box, entry: Schedule) -> None:
    """The other scheduler looks until the schedule is free; Redis has its own clock."""

    async def settled() -> bool:
        await box.schedulers[1].turn(entry)
        return bool(await box.counted(entry))

    box.clock.now += 0.1
    await until(settled)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), QueueFull(1.0)])
async def test_a_firing_waits_for_the_store_and_for_room_in_the_queue(
    box: Box, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    box.clock.now += 10

    async def refuse(_request: JobRequest) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(box.schedulers[0]._jobs, "submit", refuse)
        with pytest.raises(type(error)):
            await box.schedulers[0].turn(entry)
    await box.turn(entry)
    assert await box.counted(entry) == {"fired": 1}


async def test_an_outage_is_said_once_and_schedules_go_on_after_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, entry, outcomes = box.schedulers[0], schedule("x: every 10s: toy"), [False, False, True, True]

    async def turn(_schedule: Schedule) -> float:
        is_well = outcomes.pop(0)
        if not outcomes:
            scheduler._stopping.set()
        if not is_well:
            raise StoreUnavailable("away")
        return box.clock.now

    async def rest(_moment: float) -> None: ...

    monkeypatch.setattr(scheduler, "turn", turn)
    monkeypatch.setattr(scheduler, "_rest_until", rest)
    with structlog.testing.capture_logs() as lines:
        await scheduler._follow(entry)
    assert [line["event"] for line in lines] == ["Schedule has to wait", "Schedule goes on"]


def called(work: Callable[[], Awaitable[None]], seconds: float = 60.0) -> Schedule:
    return schedule("x: every 10s: toy", Called(work, seconds))


async def test_what_the_scheduler_does_itself_is_done_once_over_all(box: Box) -> None:
    done: list[float] = []

    async def work() -> None:
        done.append(box.clock.now)

    for _ in range(3):
        await box.turn(called(work))
        box.clock.now += 10
    assert done == [1_700_000_015.0, 1_700_000_025.0]
    assert await box.counted(called(work)) == {"fired": 2}


async def test_firings_that_come_while_it_is_still_at_it_are_prevented(box: Box) -> None:
    async def work() -> None:
        box.clock.now += 35

    await box.turn(called(work))
    box.clock.now += 10
    assert await box.schedulers[0].turn(called(work)) == 1_700_000_060.0
    assert await box.counted(called(work)) == {"fired": 1, "overlaps_prevented": 4}


@pytest.mark.parametrize("instances", ["sqlite"], indirect=True)  # whose clock is in our hand
async def test_what_takes_longer_than_the_hold_is_still_held(box: Box) -> None:
    begun, enough, renewed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await enough.wait()

    one, two = box.schedulers
    one._hold_seconds = 0.2
    hold = one._store.hold

    async def renew(name: str, owner: str, seconds: float, now: float) -> object:
        record = await hold(name, owner, seconds, now)
        renewed.set()
        return record

    await box.turn(called(work))
    box.clock.now += 10
    one._store.hold = renew  # type: ignore[method-assign,assignment]
    turn = asyncio.create_task(one.turn(called(work)))
    await begun.wait()
    for _ in range(10):
        renewed.clear()
        await renewed.wait()
        box.clock.now += 0.06  # three times as often as it has to be renewed: one may have begun before the last step
        assert await two.turn(called(work)) == box.clock.now + TAKEN_SECONDS
    enough.set()
    await turn
    assert await box.counted(called(work)) == {"fired": 1}


async def test_a_hold_that_is_lost_ends_the_work_and_is_an_incident(box: Box) -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    one = box.schedulers[0]
    one._hold_seconds = 0.2
    await box.turn(called(work))
    box.clock.now += 10
    hold = one._store.hold

    async def hold_once(name: str, owner: str, seconds: float, now: float) -> object:
        one._store.hold = stolen  # type: ignore[method-assign,assignment]
        return await hold(name, owner, seconds, now)

    async def stolen(*_arguments: object) -> None:
        return None

    one._store.hold = hold_once  # type: ignore[method-assign,assignment]
    with structlog.testing.capture_logs() as lines:
        await one.turn(called(work))
    assert cancelled.is_set()
    assert [line["event"] for line in lines] == ["Schedule overlaps"]
    assert await box.counted(called(work)) == {"overlap_incidents": 1}


async def _raise() -> None:
    raise RuntimeError("broken")


async def _hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("entry", [called(_raise), called(_hang, 0.05)], ids=["raises", "hangs"])
async def test_work_that_fails_or_takes_too_long_is_counted_and_the_next_firing_comes(
    box: Box, entry: Schedule
) -> None:
    for _ in range(3):
        with structlog.testing.capture_logs() as lines:
            await box.turn(entry)
        box.clock.now += 10
    assert lines[0]["event"] == "Scheduled action failed"
    assert await box.counted(entry) == {"fired": 2, "failed": 2}


async def test_a_job_that_cannot_be_made_is_counted_as_failed(box: Box) -> None:
    def make() -> JobRequest:
        raise ValueError("there is no such model")

    entry = schedule("x: every 10s: toy", Queued(make))
    for _ in range(2):
        await box.turn(entry)
        box.clock.now += 10
    assert await box.counted(entry) == {"fired": 1, "failed": 1}


async def test_an_overlap_that_no_key_has_prevented_is_seen(box: Box) -> None:
    entry = schedule("x: every 10s: toy")
    await box.turn(entry)
    other = (await box.jobs.submit(toy_job())).job
    await box.store.hold("x", "somebody", 60, 0.0)
    await box.store.settle("x", "somebody", 0.0, ScheduleCounts(), other.id)
    box.clock.now += 10
    await box.turn(entry)
    assert await box.counted(entry) == {"fired": 1, "overlap_incidents": 1}
