"""What schedulers do: each firing once over all of them, never two at a time, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest
import structlog

from serving.errors import JobNotFound, QueueFull, ScheduleNotFound, StoreUnavailable
from serving.jobs.job import Firing, Job, JobRequest, ScheduleCounts, ScheduleRecord
from serving.jobs.store import JobStore
from serving.schedules.parse import Action, Schedule
from serving.schedules.scheduler import MAX_CLOCK_SKEW_SECONDS, Scheduler
from tests.serving.conftest import WallClock
from tests.serving.schedules.conftest import Instances, schedule, toy_job

pytestmark = pytest.mark.anyio

OWNER, LEASE = "a runner", 3600.0
OFTEN = schedule("x: every 10s: toy")


class Box:
    """Two schedulers, each over a store of its own to the same jobs, and one clock."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self.clock: WallClock = instances.clock
        self.clock.now = 1_700_000_005.0
        self.jobs: JobStore = instances.open()

    def scheduler(self, *entries: Schedule, max_queued: int = 1000) -> Scheduler:
        return Scheduler(entries, self._instances.open(max_queued), clock=self.clock)

    async def turn(self, *entries: Schedule) -> None:
        """Two schedulers, as if restarted, look at the same time."""
        await asyncio.gather(*(self.scheduler(*entries).turn() for _ in range(2)))

    async def counted(self, entry: Schedule = OFTEN) -> dict[str, int]:
        """The counts that are not 0."""
        record = (await self.jobs.schedules())[entry.name]
        return {name: count for name, count in asdict(record.counts).items() if count}

    async def claim(self) -> Job | None:
        return await self.jobs.claim(OWNER, LEASE, ["toy"])

    async def finish(self, job: Job) -> None:
        await self.jobs.checkpoint(job.id, OWNER, LEASE, 0, b"")
        await self.jobs.finish(job.id, OWNER)

    async def work(self) -> bool:
        """Do one job, as a runner would; False if there is none."""
        job = await self.claim()
        if job is not None:
            await self.finish(job)
        return job is not None


@pytest.fixture
async def box(instances: Instances) -> Box:
    return Box(instances)


async def test_each_firing_is_one_job_over_all_schedulers(box: Box) -> None:
    await box.turn(OFTEN)
    assert not await box.work(), "nothing is due when a schedule is first seen"
    for _ in range(3):
        box.clock.now += 10
        await box.turn(OFTEN)
        await box.turn(OFTEN)
        assert await box.work()
        assert not await box.work()
    assert await box.counted() == {"fired": 3}
    assert (await box.jobs.schedules())["x"].last == 1_700_000_030.0


async def test_a_turn_gives_the_next_time_of_any_schedule(box: Box) -> None:
    entries = (schedule("x: every 1m: toy"), OFTEN)
    assert await box.scheduler(*entries).turn() == 1_700_000_010.0
    box.clock.now += 10
    assert await box.scheduler(*entries).turn() == 1_700_000_020.0


async def test_a_firing_is_prevented_while_the_one_before_waits_or_runs(box: Box) -> None:
    await box.turn(OFTEN)
    box.clock.now += 10
    await box.turn(OFTEN)
    box.clock.now += 10
    await box.turn(OFTEN)
    running = await box.claim()
    assert running is not None
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.counted() == {"fired": 1, "overlaps_prevented": 2}
    await box.finish(running)
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.counted() == {"fired": 2, "overlaps_prevented": 2}


async def test_a_firing_is_prevented_while_another_job_has_its_mutex(box: Box) -> None:
    entry = schedule("x: every 10s: toy one-at-a-time")
    await box.turn(entry)
    await box.jobs.submit(toy_job("one-at-a-time"))
    box.clock.now += 10
    await box.turn(entry)
    assert await box.counted() == {"overlaps_prevented": 1}


async def test_two_schedules_of_the_same_action_do_not_prevent_each_other(box: Box) -> None:
    entries = [schedule(f"{name}: every 10s: toy") for name in ("x", "y")]
    await box.turn(*entries)
    box.clock.now += 10
    await box.turn(*entries)
    assert (await box.jobs.counts()).queued == 2


async def test_late_firings_fire_once_within_their_grace_and_are_missed_after_it(box: Box) -> None:
    entry, hourly = schedule("x: every 10s grace 25: toy"), schedule("y: 0 * * * * grace 25: toy")
    await box.turn(entry, hourly)
    box.clock.now += 100
    with structlog.testing.capture_logs() as lines:
        await box.turn(entry)
    assert await box.counted() == {"fired": 1, "missed": 7, "coalesced": 2}
    (line,) = lines
    assert (line["event"], line["missed"], line["coalesced"], line["at"]) == ("Schedule fired", 7, 2, 1_700_000_100)
    assert line["job"] == (await box.jobs.schedules())["x"].job
    box.clock.now += 3600
    with structlog.testing.capture_logs() as lines:
        await box.turn(hourly)
    assert [(line["event"], line["log_level"]) for line in lines] == [("Schedule missed", "warning")]
    assert await box.counted(hourly) == {"missed": 1}


async def test_a_firing_is_not_repeated_even_when_its_job_is_gone(box: Box) -> None:
    await box.turn(OFTEN)
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.work()
    assert await box.jobs.prune(older_than=3600, keep=0, keep_bytes=1 << 30) == 1
    await box.turn(OFTEN)
    assert not await box.work()


async def test_of_a_schedule_only_the_latest_job_is_kept(box: Box) -> None:
    await box.turn(OFTEN)
    jobs = []
    for _ in range(2):
        box.clock.now += 10
        await box.turn(OFTEN)
        jobs.append((await box.jobs.schedules())["x"].job)
        assert await box.work()
    assert (await box.jobs.get(jobs[1])).state == "done"
    with pytest.raises(JobNotFound):
        await box.jobs.get(jobs[0])
    counts = await box.jobs.counts()
    assert (counts.done, counts.queued) == (1, 0)


async def test_a_scheduler_that_was_slow_to_submit_does_nothing(box: Box) -> None:
    await box.turn(OFTEN)
    seen = (await box.jobs.schedules())["x"].last
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.work()
    late = Firing("x", seen, 1_700_000_010.0, ScheduleCounts(missed=1), replace(toy_job(), idempotency_key="other"))
    assert await box.jobs.fire(late) is None
    assert await box.jobs.fire(Firing("x", None, 0.0)) is None
    assert not await box.work()
    assert await box.counted() == {"fired": 1}


@pytest.mark.parametrize("max_queued", [1, 1000])
async def test_a_firing_waits_for_room_in_the_queue(box: Box, max_queued: int) -> None:
    await box.turn(OFTEN)
    waiting = await box.jobs.submit(toy_job())
    box.clock.now += 10
    scheduler = box.scheduler(OFTEN, max_queued=max_queued)
    if max_queued == 1:
        with pytest.raises(QueueFull):
            await scheduler.turn()
        await box.jobs.cancel(waiting.id)
    await scheduler.turn()
    assert await box.counted() == {"fired": 1}


@pytest.mark.parametrize("error", [StoreUnavailable("away"), QueueFull(1.0)], ids=["unavailable", "full"])
async def test_an_outage_is_logged_once_and_schedules_continue_after_it(
    box: Box, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, store = box.scheduler(OFTEN), box.jobs
    await scheduler.attempt()
    box.clock.now += 10

    async def refuse(_firing: Firing) -> None:
        raise error

    with structlog.testing.capture_logs() as lines:
        with monkeypatch.context() as patched:
            patched.setattr(scheduler._store, "fire", refuse)
            for _ in range(2):
                assert await scheduler.attempt() == box.clock.now + 1
        assert await scheduler.attempt() == 1_700_000_020.0
    assert [line["event"] for line in lines] == ["Schedules wait", "Schedule fired", "Schedules continue"]
    assert (await store.counts()).queued == 1


async def test_a_job_that_cannot_be_made_is_counted_as_failed_and_the_next_firing_comes(box: Box) -> None:
    def make() -> JobRequest:
        raise ValueError("there is no such model")

    entry = schedule("x: every 10s: toy", Action(make))
    for _ in range(3):
        with structlog.testing.capture_logs() as lines:
            await box.scheduler(entry, OFTEN).turn()
        box.clock.now += 10
    assert lines[0]["event"] == "Scheduled job cannot be made"
    assert await box.counted(entry) == {"fired": 2, "failed": 2}


async def test_a_clock_that_was_ahead_silences_no_schedule(box: Box) -> None:
    await box.turn(OFTEN)
    box.clock.now += 1e7
    await box.turn(OFTEN)
    assert await box.work(), "as late as the clock says it is"
    box.clock.now -= 1e7
    with structlog.testing.capture_logs() as lines:
        await box.turn(OFTEN)
    assert lines[0]["event"] == "Last firing of a schedule is in the future"
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.work()
    assert (await box.counted())["fired"] == 2


async def test_clocks_that_differ_a_little_repeat_nothing(box: Box) -> None:
    await box.turn(OFTEN)
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.work()
    box.clock.now -= MAX_CLOCK_SKEW_SECONDS - 1
    await box.turn(OFTEN)
    assert not await box.work()
    assert (await box.jobs.schedules())["x"].last == 1_700_000_010.0


async def test_a_job_beside_an_unfinished_one_is_an_incident(box: Box) -> None:
    await box.turn(OFTEN)
    for number in range(2):
        seen = (await box.jobs.schedules())["x"].last
        request = replace(toy_job(), idempotency_key=f"key {number}")  # and nothing that keeps them apart
        assert await box.jobs.fire(Firing("x", seen, seen + 1, request=request))
    assert await box.counted() == {"fired": 2, "overlap_incidents": 1}
    assert (await box.jobs.counts()).queued == 2, "an unfinished job is not removed"


async def test_counts_and_times_are_there_for_the_next_process(box: Box, instances: Instances) -> None:
    counts = ScheduleCounts(fired=1, missed=2, coalesced=3, overlaps_prevented=4, failed=5, overlap_incidents=6)
    assert await box.jobs.fire(Firing("x", None, 1_700_000_000.123456, counts))
    assert await instances.open().schedules() == {"x": ScheduleRecord(last=1_700_000_000.123456, counts=counts)}


async def test_a_timetable_shows_the_next_and_the_last_time_and_counts(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = (OFTEN, schedule("y: 0 3 1 1 * in Europe/Berlin: toy"))
    await box.turn(OFTEN)
    box.clock.now += 10
    await box.turn(OFTEN)
    scheduler = Scheduler(entries, box.jobs, clock=box.clock)
    often, yearly = await scheduler.timetable()
    assert (often["next"], often["last"]) == ("2023-11-14T22:13:40+00:00", "2023-11-14T22:13:30+00:00")
    assert (often["fired"], often["missed"], often["grace_seconds"]) == (1, 0, 60.0)
    assert (yearly["when"], yearly["next"]) == ("0 3 1 1 * in Europe/Berlin", "2024-01-01T02:00:00+00:00")
    assert (yearly["last"], "fired" in yearly) == (None, False)

    async def unavailable() -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(box.jobs, "schedules", unavailable)
    assert "fired" not in (await scheduler.timetable())[0]


async def test_what_is_due_of_a_paused_schedule_is_passed_over_by_all_and_not_made_up_for(box: Box) -> None:
    """The pause is in the store: it outlives those who were told of it."""
    shown = await box.scheduler(OFTEN).pause("x", paused=True)
    assert (shown["paused"], shown["next"]) == (True, None)
    for _ in range(3):
        box.clock.now += 10
        await box.turn(OFTEN)
        assert not await box.work()
    (row,) = await box.scheduler(OFTEN).timetable()
    assert row["paused"]
    shown = await box.scheduler(OFTEN).pause("x", paused=False)
    assert not shown["paused"]
    await box.turn(OFTEN)
    assert not await box.work()
    box.clock.now += 10
    await box.turn(OFTEN)
    assert await box.work()
    assert await box.counted() == {"fired": 1}
    with pytest.raises(ScheduleNotFound):
        await box.scheduler(OFTEN).pause("y", paused=True)
