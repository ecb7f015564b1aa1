"""Picks SQLite, Redis or Supabase for each store; building one opens nothing, and needs neither models nor numpy."""

from __future__ import annotations

from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import EntityStore
from serving.errors import CannotServe
from serving.events.log import EventLog
from serving.jobs.store import JobStore
from serving.settings import Settings


def build_job_store(settings: Settings) -> JobStore:
    """Keeps jobs in Redis if there is one, else in a file below DATA_DIR. Raises InvalidRedisUrl."""
    if settings.redis_url:
        from serving.jobs.redis import RedisJobStore

        return RedisJobStore(
            settings.redis_url,
            max_queued=settings.job_max_queued,
            max_queued_of_client=settings.job_max_queued_per_key,
            health_check_interval=settings.redis_health_check_interval,
        )
    from serving.jobs.sqlite import SQLiteJobStore

    return SQLiteJobStore(
        settings.data_dir,
        max_queued=settings.job_max_queued,
        max_queued_of_client=settings.job_max_queued_per_key,
    )


def build_event_log(settings: Settings) -> EventLog:
    """Keeps events in Redis if there is one, else in a file below DATA_DIR. Raises InvalidRedisUrl."""
    if settings.redis_url:
        from serving.events.redis import RedisEventLog

        return RedisEventLog(settings.redis_url, health_check_interval=settings.redis_health_check_interval)
    from serving.events.sqlite import SQLiteEventLog
    from serving.jobs.sqlite import jobs_database

    # a database of its own: reading events does not wait while a large job is written
    return SQLiteEventLog(jobs_database(settings.data_dir))


def build_entity_store(settings: Settings) -> EntityStore:
    """Keeps records and outcomes in Supabase if there is one, else in a file below DATA_DIR. Raises CannotServe."""
    keep = {
        "keep_records": settings.max_records_per_entity,
        "keep_outcomes": settings.max_outcomes_per_model,
        "keep_in_all": settings.max_records,
    }
    if not settings.supabase_url:
        return SQLiteEntityStore(settings.data_dir, **keep)
    # not at the top: it takes 40 MB; and before the fork, so that the workers share them
    try:
        from serving.entities.supabase import SupabaseEntityStore
    except ImportError as error:
        raise CannotServe(f"SUPABASE_URL is set, which needs `pip install forkserve[supabase]`: {error}") from error
    return SupabaseEntityStore(settings.supabase_url, settings.supabase_key, breaker=None, **keep)
