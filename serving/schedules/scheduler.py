"""A scheduler: a process that waits for the times of all schedules and does what is due, with others of its kind.

Any number of them may run over one store. Whoever holds a schedule decides about its firings; a job is submitted under
a key made of the schedule's name and the time of the firing. So one that was killed after that is not repeated, and one
that was killed before is done by whoever comes next, as long as it is within its grace.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from serving.errors import JobNotFound, QueueFull, StoreUnavailable
from serving.jobs.job import Job
from serving.jobs.store import JobStore, new_owner
from serving.schedules.due import Due, find_due
from serving.schedules.schedule import Called, Queued, Schedule
from serving.schedules.store import Record, ScheduleCounts, ScheduleStore

log = structlog.get_logger(__name__)

HOLD_SECONDS = 5.0
"""A schedule whose scheduler was killed is free again after this."""

TAKEN_SECONDS = 0.5
"""Between looks at a schedule that another scheduler holds."""

AWAY_SECONDS = 1.0
"""Between attempts while a store is away or the queue is full."""

LONGEST_SLEEP = 30.0
"""A clock that is set is noticed within this."""

STOP_SECONDS = 3.0
"""What is being done has so long to be finished when the scheduler is to end."""


class _HoldLost(Exception):
    """Another scheduler holds the schedule, while what was begun under our hold still ran."""


class Scheduler:
    """Built before the fork; `run` is all that its process does."""

    def __init__(
        self,
        schedules: Sequence[Schedule],
        store: ScheduleStore,
        jobs: JobStore,
        *,
        hold_seconds: float = HOLD_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._schedules = schedules
        self._store = store
        self._jobs = jobs
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._owner = ""
        self._stopping = asyncio.Event()
        self._away: set[str] = set()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._owner, self._stopping = new_owner(), asyncio.Event()
        log.info("Scheduler works", pid=os.getpid(), schedules=[schedule.name for schedule in self._schedules])
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as patience:

                def stop() -> None:
                    self._stopping.set()
                    patience.reschedule(loop.time() + STOP_SECONDS)

                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, stop)
                async with asyncio.TaskGroup() as group:
                    for schedule in self._schedules:
                        group.create_task(self._follow(schedule))
        await self._store.close()
        await self._jobs.close()
        log.info("Scheduler ends", pid=os.getpid())

    async def _follow(self, schedule: Schedule) -> None:
        """One schedule, for ever. An outage is said once."""
        while not self._stopping.is_set():
            try:
                next_time = await self.turn(schedule)
            except (StoreUnavailable, QueueFull) as error:
                if schedule.name not in self._away:
                    log.warning("Schedule has to wait", schedule=schedule.name, reason=str(error))
                self._away.add(schedule.name)
                next_time = self._clock() + AWAY_SECONDS
            else:
                if schedule.name in self._away:
                    log.info("Schedule goes on", schedule=schedule.name)
                self._away.discard(schedule.name)
            await self._rest_until(next_time)

    async def _rest_until(self, moment: float) -> None:
        while not self._stopping.is_set() and (left := moment - self._clock()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LONGEST_SLEEP)):
                    await self._stopping.wait()

    async def turn(self, schedule: Schedule) -> float:
        """Do what is due of a schedule, if anything is; the time of the next look. Raises StoreUnavailable, QueueFull.

        After an error nothing is settled: the firing is due still, until its grace is over.
        """
        now = self._clock()
        record = await self._store.hold(schedule.name, self._owner, self._hold_seconds, now)
        if record is None:
            return now + TAKEN_SECONDS
        due, upto = find_due(schedule.when, record.last, now, schedule.grace), record.last
        try:
            if due is not None:
                upto = await self._do(schedule, record, due)
        finally:
            # what is settled is not held any more; so this is for nothing due, and for errors
            if due is None or upto == record.last:
                with suppress(StoreUnavailable):
                    await self._store.release(schedule.name, self._owner)
        return schedule.when.after(upto)

    async def _do(self, schedule: Schedule, record: Record, due: Due) -> float:
        """Fire it or not, settle it; up to which time that is."""
        action, counts, job, upto = schedule.action, ScheduleCounts(), "", due.upto
        if due.fires and isinstance(action, Queued):
            counts, job = await self._queue(schedule, action, record, due)
        elif due.fires and isinstance(action, Called):
            try:
                counts, upto = await self._call(schedule, action, due)
            except _HoldLost:
                await self._note_overlap(schedule)
                return upto
        counts = replace(counts, missed=due.missed, coalesced=due.coalesced)
        if await self._store.settle(schedule.name, self._owner, upto, counts, job):
            _tell(schedule, due, counts, job)
        elif counts.fired and isinstance(action, Called):
            await self._note_overlap(schedule)
        return upto

    async def _note_overlap(self, schedule: Schedule) -> None:
        """Something was done here while another scheduler could do it, too: this process was stopped for too long."""
        log.error("Schedule overlaps", schedule=schedule.name)
        await self._store.add(schedule.name, ScheduleCounts(overlap_incidents=1))

    async def _queue(self, schedule: Schedule, action: Queued, record: Record, due: Due) -> tuple[ScheduleCounts, str]:
        """Submit the job, unless the one before, or another with its mutex, is not finished."""
        # no client's key has a space, so that nobody can take this one before us
        key = f"schedule {schedule.name} {due.upto:.0f}"
        try:
            request = action.make(*schedule.arguments)
        except Exception as error:  # whatever it is, the other schedules go on
            log.exception("Scheduled action failed", schedule=schedule.name, error=str(error))
            return ScheduleCounts(fired=1, failed=1), ""
        request = replace(request, idempotency_key=key, unique_key=f"schedule {schedule.name}")
        submitted = await self._jobs.submit(request)
        if submitted.job.idempotency_key != key:
            return ScheduleCounts(overlaps_prevented=1), ""
        incidents = int(submitted.is_new and await self._is_unfinished(record.job))
        return ScheduleCounts(fired=1, overlap_incidents=incidents), submitted.job.id

    async def _is_unfinished(self, job_id: str) -> bool:
        if not job_id:
            return False
        try:
            job: Job = await self._jobs.get(job_id)
        except JobNotFound:
            return False
        return not job.is_finished

    async def _call(self, schedule: Schedule, action: Called, due: Due) -> tuple[ScheduleCounts, float]:
        """Do it here. Firings that become due meanwhile are prevented overlaps; up to which time there were any."""
        failed = 0
        try:
            async with asyncio.timeout(action.seconds):
                await self._while_held(schedule, action)
        except (StoreUnavailable, _HoldLost):
            raise
        except Exception as error:  # whatever it is, the other schedules go on
            log.exception("Scheduled action failed", schedule=schedule.name, error=str(error))
            failed = 1
        meanwhile = find_due(schedule.when, due.upto, self._clock(), 0.0)
        prevented = meanwhile.missed + meanwhile.coalesced + int(meanwhile.fires) if meanwhile else 0
        upto = meanwhile.upto if meanwhile else due.upto
        return ScheduleCounts(fired=1, failed=failed, overlaps_prevented=prevented), upto

    async def _while_held(self, schedule: Schedule, action: Called) -> None:
        """The action, cancelled when the hold is lost, or may be. Raises StoreUnavailable, _HoldLost."""
        working = asyncio.ensure_future(action.call(*schedule.arguments))
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self._hold_seconds
        try:
            while not (await asyncio.wait([working], timeout=self._hold_seconds / 4))[0]:
                asked = loop.time()
                try:
                    held = await self._store.hold(schedule.name, self._owner, self._hold_seconds, self._clock())
                except StoreUnavailable:
                    if loop.time() > held_until:
                        raise
                    continue
                if held is None:
                    raise _HoldLost
                held_until = asked + self._hold_seconds
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _tell(schedule: Schedule, due: Due, counts: ScheduleCounts, job: str) -> None:
    said = log.info if counts.fired or counts.overlaps_prevented else log.warning
    event = "Schedule fired" if counts.fired else "Schedule overlaps were prevented" if due.fires else "Schedule missed"
    told = {"missed": counts.missed, "coalesced": counts.coalesced, "overlaps_prevented": counts.overlaps_prevented}
    said(event, schedule=schedule.name, action=schedule.text, at=due.upto, job=job, **told)
    if counts.overlap_incidents:
        log.error("Schedule overlaps", schedule=schedule.name)
