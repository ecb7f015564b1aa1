"""The log of events that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from serving.events.log import EventLog
from serving.events.redis import RedisEventLog
from serving.events.sqlite import SQLiteEventLog


def build_event_log(directory: Path, redis_url: str) -> EventLog:
    """In Redis if there is one, else in a file below `directory`. Opens nothing. Raises InvalidRedisUrl."""
    return RedisEventLog(redis_url) if redis_url else SQLiteEventLog(directory)
