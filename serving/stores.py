"""Picks SQLite, Redis or Supabase for each store; building one opens nothing, and needs neither models nor numpy."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from cache.tiered import TieredCache, build_cache
from registry.store.directory import read_file
from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import EntityStore
from serving.errors import CannotServe
from serving.events.log import EventLog
from serving.jobs.store import JobStore, QueueLimits
from serving.monitoring.predictions.store import PredictionStore
from serving.settings import Settings
from serving.storage.seal import Seal

NO_SUPABASE = "SUPABASE_URL is set, which needs `pip install forkserve[supabase]`: {}"

SECRET_FILENAME, TOKEN_FILENAME = "secret.key", "admin-token"


def build_seal(settings: Settings) -> Seal:
    """Signs what is kept in Redis: with SECRET_KEY, else ADMIN_TOKEN, else a secret that this box keeps in DATA_DIR.

    Raises CannotServe if that can be neither read nor written.
    """
    if not settings.redis_url:
        return Seal()
    given = settings.secret_key or (settings.admin_token,)
    return Seal(given if any(given) else (kept_secret(settings.data_dir),))


def choose_scratch_directory(directory: Path) -> None:
    """Have temporary files made in DATA_DIR where there is no other directory for them: the system may be read-only."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.tempdir = str(directory)


def kept_secret(directory: Path) -> str:
    """The secret of this box, which is made at the first start. Raises CannotServe."""
    return _kept(directory / SECRET_FILENAME, "SECRET_KEY")


def kept_token(directory: Path) -> str:
    """The admin token of this box where ADMIN_TOKEN is not set, made when it is first needed. Raises CannotServe."""
    return _kept(directory / TOKEN_FILENAME, "ADMIN_TOKEN")


def _kept(path: Path, setting: str) -> str:
    """A secret that only the owner of its file can read."""
    try:
        if not path.exists():
            _make_secret(path)
        return read_file(path, max_bytes=1024, flags=os.O_NOFOLLOW).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotServe(f"{path}: {error}; set {setting} instead") from error


def _make_secret(path: Path) -> None:
    """Write a secret, whole, unless another process has done so meanwhile. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # a new file that only its owner may open, whatever others have put beside it
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    scratch = Path(name)
    scratch.write_text(secrets.token_hex(32))
    with suppress(FileExistsError):
        os.link(scratch, path)
    scratch.unlink()


def build_answer_cache(settings: Settings) -> TieredCache:
    """Keeps answers in memory, and in Redis if there is one. Raises InvalidRedisUrl, CannotServe."""
    return build_cache(
        max_items=settings.cache_max_items,
        max_bytes=settings.cache_max_bytes,
        ttl_seconds=settings.cache_ttl_seconds,
        redis_url=settings.redis_url,
        redis_health_check_interval=settings.redis_health_check_interval,
        seal=build_seal(settings),
    )


def build_job_store(settings: Settings) -> JobStore:
    """Keeps jobs in Redis if there is one, else in a file below DATA_DIR. Raises InvalidRedisUrl."""
    if settings.redis_url:
        from serving.jobs.redis import RedisJobStore

        return RedisJobStore(
            settings.redis_url,
            limits=queue_limits(settings),
            health_check_interval=settings.redis_health_check_interval,
            seal=build_seal(settings),
        )
    from serving.jobs.sqlite import SQLiteJobStore

    return SQLiteJobStore(settings.data_dir, limits=queue_limits(settings))


def queue_limits(settings: Settings) -> QueueLimits:
    """What may wait in the store of jobs."""
    return QueueLimits(
        jobs=settings.job_max_queued,
        jobs_of_account=settings.job_max_queued_per_key,
        bytes=settings.job_max_queued_bytes,
        bytes_of_account=settings.job_max_queued_bytes_per_key,
    )


def build_event_log(settings: Settings) -> EventLog:
    """Keeps events in Redis if there is one, else in a file below DATA_DIR. Raises InvalidRedisUrl."""
    if settings.redis_url:
        from serving.events.redis import RedisEventLog

        return RedisEventLog(
            settings.redis_url,
            health_check_interval=settings.redis_health_check_interval,
            seal=build_seal(settings),
        )
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
        raise CannotServe(NO_SUPABASE.format(error)) from error
    return SupabaseEntityStore(settings.supabase_url, settings.supabase_key, breaker=None, **keep)


def build_prediction_store(settings: Settings) -> PredictionStore:
    """Keeps the log of predictions in Supabase if there is one, else in a file below DATA_DIR. Raises CannotServe."""
    if settings.supabase_url:
        try:
            from serving.monitoring.predictions.supabase import SupabasePredictionStore
        except ImportError as error:
            raise CannotServe(NO_SUPABASE.format(error)) from error
        return SupabasePredictionStore(settings.supabase_url, settings.supabase_key)
    from serving.monitoring.predictions.sqlite import SQLitePredictionStore

    return SQLitePredictionStore(settings.data_dir)
