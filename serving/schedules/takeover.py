"""Takes over what the version before kept of schedules in a store of its own, so that no firing is repeated."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import structlog

from serving.jobs.job import Firing, ScheduleRecord, record_from
from serving.jobs.redis import records_from
from serving.jobs.store import JobStore
from serving.storage.redis import ScriptedRedis

log = structlog.get_logger(__name__)

OLD_FILENAME = "schedules.db"
OLD_PREFIX = "forkserve:{schedules}:"

READ_ALL = """
local all = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1] .. 'names')) do
  table.insert(all, name)
  table.insert(all, redis.call('HGETALL', KEYS[1] .. 'schedule:' .. name))
end
return all
"""


async def take_over(store: JobStore, directory: Path, redis_url: str) -> None:
    """Copy the schedules that `store` does not know yet. Raises StoreUnavailable."""
    old = await _read_redis(redis_url) if redis_url else _read_file(directory / OLD_FILENAME)
    taken = [name for name, record in old.items() if await store.fire(Firing(name, None, record.last, record.counts))]
    if taken:
        source = OLD_PREFIX if redis_url else OLD_FILENAME
        log.info("Schedules taken over", schedules=taken, source=source, hint="the source is not used any more")


def _read_file(path: Path) -> Mapping[str, ScheduleRecord]:
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return {row["name"]: record_from(dict(row)) for row in connection.execute("select * from schedules")}
    except sqlite3.Error as error:
        log.warning("Old schedules cannot be read", source=OLD_FILENAME, reason=str(error))
        return {}


async def _read_redis(url: str) -> Mapping[str, ScheduleRecord]:
    redis = ScriptedRedis(url)
    try:
        flat = await redis.run(READ_ALL, [OLD_PREFIX])
    finally:
        await redis.close()
    return records_from(flat)
