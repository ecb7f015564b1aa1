"""The store of jobs that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.jobs.store import JobStore


def build_job_store(directory: Path, redis_url: str, *, max_queued: int) -> JobStore:
    """In Redis if there is one, else in a file below `directory`. Opens nothing. Raises InvalidRedisUrl."""
    if redis_url:
        return RedisJobStore(redis_url, max_queued=max_queued)
    return SQLiteJobStore(directory, max_queued=max_queued)
