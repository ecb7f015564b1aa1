"""Fires schedules: a process that sleeps until the next time of any and then submits its job.

Any number of schedulers may run over one job store. The store is the lock: it keeps the time of each schedule's last
firing, and moves it on and submits the job in one step, for the scheduler that comes first. So a scheduler that is
killed neither repeats a firing nor loses one that the next scheduler finds within its grace.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from serving.errors import QueueFull, ScheduleNotFound, StoreUnavailable
from serving.jobs.job import Firing, ScheduleCounts, ScheduleRecord
from serving.jobs.store import JobStore
from serving.process.child import ending_event
from serving.schedules.parse import Schedule
from serving.schedules.when import NEVER, Due, find_due

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""Between attempts while the store is unavailable or the queue is full."""

MAX_SLEEP_SECONDS = 30.0
"""A clock that was set is noticed within this."""

MAX_CLOCK_SKEW_SECONDS = 60.0
"""A last firing further in the future comes from a wrong clock and is forgotten."""


class Scheduler:
    """Built before the fork; `run` is all that its process does, and any process may ask for the timetable."""

    def __init__(
        self,
        schedules: Sequence[Schedule],
        store: JobStore,
        *,
        take_over: Callable[[JobStore], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`take_over` copies into the store, before the first turn, what an earlier version has left."""
        self._schedules = schedules
        self._store = store
        self._take_over = take_over
        self._clock = clock
        self._is_waiting = False

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        stopping = ending_event()
        log.info("Scheduler started", pid=os.getpid(), schedules=[schedule.name for schedule in self._schedules])
        while not stopping.is_set():
            next_time = await self.attempt()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(0.0, next_time - self._clock()), MAX_SLEEP_SECONDS)):
                    await stopping.wait()
        await self._store.close()
        log.info("Scheduler stopped", pid=os.getpid())

    async def attempt(self) -> float:
        """Fire all that is due, or log once why that has to wait; the time of the next attempt."""
        try:
            next_time = await self.turn()
        except (StoreUnavailable, QueueFull) as error:
            if not self._is_waiting:
                log.warning("Schedules wait", reason=str(error))
            self._is_waiting = True
            return self._clock() + RETRY_SECONDS
        if self._is_waiting:
            log.info("Schedules continue")
        self._is_waiting = False
        return next_time

    async def turn(self) -> float:
        """Fire all that is due; the time of the next firing. Raises StoreUnavailable, QueueFull.

        A schedule that raised is still due, until its grace is over.
        """
        if self._take_over is not None:
            await self._take_over(self._store)
            self._take_over = None
        records = await self._store.schedules()
        return min([await self._settle(schedule, records.get(schedule.name)) for schedule in self._schedules])

    async def _settle(self, schedule: Schedule, record: ScheduleRecord | None) -> float:
        now = self._clock()
        if record is None or record.last > now + MAX_CLOCK_SKEW_SECONDS:
            await self._begin(schedule, record, now)
            return schedule.when.after(now)
        due = find_due(schedule.when, record.last, now, schedule.grace)
        if due is None:
            return schedule.when.after(record.last)
        if record.paused:
            await self._store.fire(Firing(schedule.name, record.last, due.upto))
            return schedule.when.after(due.upto)
        firing = Firing(
            schedule.name, record.last, due.upto, ScheduleCounts(missed=due.missed, coalesced=due.coalesced)
        )
        if due.fires:
            firing = _with_job(firing, schedule)
        settled = await self._store.fire(firing)
        if settled is not None:  # else another scheduler was first
            _log(schedule, due, record, settled)
        return schedule.when.after(due.upto)

    async def _begin(self, schedule: Schedule, record: ScheduleRecord | None, now: float) -> None:
        """Count from now: for a new schedule, or after a clock that was wrong."""
        if record is not None:
            log.warning("Last firing of a schedule is in the future", schedule=schedule.name, last=record.last)
        await self._store.fire(Firing(schedule.name, None if record is None else record.last, now))

    async def pause(self, name: str, *, paused: bool) -> dict[str, Any]:
        """Have all schedulers pass over what is due of a schedule, until it goes on; its row in the timetable.

        Raises ScheduleNotFound, StoreUnavailable.
        """
        schedule = next((one for one in self._schedules if one.name == name), None)
        if schedule is None:
            raise ScheduleNotFound
        record = await self._store.pause(name, paused=paused)
        if paused:
            log.info("Schedule paused", schedule=name)
        else:
            log.info("Schedule resumed", schedule=name)
        return _row(schedule, record, self._clock())

    async def timetable(self) -> list[dict[str, Any]]:
        """A JSON object for each schedule; without last firing and counts while the store is unavailable."""
        if not self._schedules:
            return []
        try:
            records = await self._store.schedules()
        except StoreUnavailable:
            records = {}
        return [_row(schedule, records.get(schedule.name), self._clock()) for schedule in self._schedules]


def _with_job(firing: Firing, schedule: Schedule) -> Firing:
    """The firing with its job, or counted as failed where none can be made."""
    try:
        request = schedule.action.request(*schedule.arguments)
    except Exception as error:  # whatever it is, the other schedules go on
        log.exception("Scheduled job cannot be made", schedule=schedule.name, error=str(error))
        return replace(firing, counts=replace(firing.counts, fired=1, failed=1))
    # no client's key has a space, so none can have taken these
    key = f"schedule {schedule.name}"
    return replace(firing, request=replace(request, unique_key=key, idempotency_key=f"{key} {firing.upto:.0f}"))


def _log(schedule: Schedule, due: Due, before: ScheduleRecord, after: ScheduleRecord) -> None:
    counts, known = asdict(after.counts), asdict(before.counts)
    changed = {name: count - known[name] for name, count in counts.items()}
    fired, prevented = changed["fired"], changed["overlaps_prevented"]
    event = "Schedule fired" if fired else "Schedule overlap prevented" if prevented else "Schedule missed"
    details = {name: changed[name] for name in ("missed", "coalesced", "overlaps_prevented")}
    level = log.info if fired or prevented else log.warning
    level(event, schedule=schedule.name, action=schedule.text, at=due.upto, job=after.job if fired else "", **details)
    if changed["overlap_incidents"]:
        log.error("Schedule overlaps", schedule=schedule.name)


def _row(schedule: Schedule, record: ScheduleRecord | None, now: float) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "when": str(schedule.when),
        "action": schedule.text,
        "grace_seconds": schedule.grace,
        "paused": record is not None and record.paused,
        "next": None if record is not None and record.paused else _iso(schedule.when.after(now)),
        "last": None if record is None else _iso(record.last),
        **({} if record is None else asdict(record.counts)),
    }


def _iso(seconds: float) -> str | None:
    """ISO 8601 in UTC, to the second."""
    return None if seconds == NEVER else datetime.fromtimestamp(int(seconds), UTC).isoformat()
