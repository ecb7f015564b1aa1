"""Schedules as the settings have them: what shows them, and who fires them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.jobs.building import build_job_store
from serving.schedules.redis import RedisScheduleStore
from serving.schedules.schedule import Action, parse_schedules
from serving.schedules.scheduler import Scheduler
from serving.schedules.sqlite import SQLiteScheduleStore
from serving.schedules.store import ScheduleStore
from serving.schedules.timetable import Timetable


@dataclass(frozen=True, slots=True)
class Schedules:
    """Both parts over one store."""

    timetable: Timetable
    scheduler: Scheduler


def build_schedules(
    text: str, actions: Mapping[str, Action], *, grace: float, directory: Path, redis_url: str, max_queued: int
) -> Schedules:
    """Over Redis if there is one, else over files below `directory`. Opens nothing.

    Raises InvalidSetting naming the entry of `text` that cannot be, InvalidRedisUrl.
    """
    schedules = parse_schedules(text, actions, grace=grace)
    store = build_schedule_store(directory, redis_url)
    jobs = build_job_store(directory, redis_url, max_queued=max_queued)
    return Schedules(Timetable(schedules, store), Scheduler(schedules, store, jobs))


def build_schedule_store(directory: Path, redis_url: str) -> ScheduleStore:
    """The store alone. Raises InvalidRedisUrl."""
    return RedisScheduleStore(redis_url) if redis_url else SQLiteScheduleStore(directory)
