"""The store of schedules that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from serving.schedules.redis import RedisScheduleStore
from serving.schedules.sqlite import SQLiteScheduleStore
from serving.schedules.store import ScheduleStore


def build_schedule_store(directory: Path, redis_url: str) -> ScheduleStore:
    """In Redis if there is one, else in a file below `directory`. Opens nothing. Raises InvalidRedisUrl."""
    return RedisScheduleStore(redis_url) if redis_url else SQLiteScheduleStore(directory)
