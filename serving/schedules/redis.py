"""Schedules in Redis, shared by all instances: a hash `schedule:NAME` for each, and the set `names`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serving.schedules.store import Record, ScheduleCounts, record_from
from serving.storage.redis import ScriptedRedis

# Few and small, and they must be settled when memory is full: what is due would be done again and again.
COMMON = """#!lua flags=allow-oom
local prefix, name = KEYS[1], ARGV[1]
local key = prefix .. 'schedule:' .. name
local function now() local t = redis.call('TIME') return tonumber(t[1]) + tonumber(t[2]) / 1e6 end
local function let_go() redis.call('HDEL', key, 'owner', 'held_until') end
local function count(from) for i = from, #ARGV, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end end
"""

HOLD = (
    COMMON
    + """
local owner, seconds, first = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local holder, held_until = unpack(redis.call('HMGET', key, 'owner', 'held_until'))
if holder and holder ~= owner and tonumber(held_until) > now() then return false end
redis.call('HSETNX', key, 'last', first)
redis.call('SADD', prefix .. 'names', name)
redis.call('HSET', key, 'owner', owner, 'held_until', string.format('%.6f', now() + seconds))
return redis.call('HGETALL', key)
"""
)

SETTLE = (
    COMMON
    + """
local owner, upto, job = ARGV[2], ARGV[3], ARGV[4]
if redis.call('HGET', key, 'owner') ~= owner then return 0 end
if tonumber(upto) > tonumber(redis.call('HGET', key, 'last')) then redis.call('HSET', key, 'last', upto) end
if job ~= '' then redis.call('HSET', key, 'job', job) end
count(5)
let_go()
return 1
"""
)

RELEASE = (
    COMMON
    + """
if redis.call('HGET', key, 'owner') == ARGV[2] then let_go() end
"""
)

ADD = (
    COMMON
    + """
if redis.call('EXISTS', key) == 1 then count(2) end
"""
)

RECORDS = (
    COMMON
    + """
local all = {}
for _, known in ipairs(redis.call('SMEMBERS', prefix .. 'names')) do
  table.insert(all, known)
  table.insert(all, redis.call('HGETALL', prefix .. 'schedule:' .. known))
end
return all
"""
)


class RedisScheduleStore:
    """A ScheduleStore under `prefix`. Holds run out by the server's clock."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "forkserve:{schedules}:",
        timeout: float = 1.0,
        health_check_interval: float = 30.0,
    ) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""
        self._redis = ScriptedRedis(url, timeout=timeout, health_check_interval=health_check_interval)
        self._prefix = prefix

    async def hold(self, name: str, owner: str, seconds: float, now: float) -> Record | None:
        found = await self._run(HOLD, name, owner, seconds, now)
        return None if found is None else _record(found)

    async def settle(self, name: str, owner: str, upto: float, counts: ScheduleCounts, job: str = "") -> bool:
        # not tried twice: the second of two would say that the hold was lost
        settled: int = await self._run(SETTLE, name, owner, upto, job, *_flat(counts), safe=False)
        return settled == 1

    async def release(self, name: str, owner: str) -> None:
        await self._run(RELEASE, name, owner)

    async def add(self, name: str, counts: ScheduleCounts) -> None:
        await self._run(ADD, name, *_flat(counts), safe=False)

    async def records(self) -> Mapping[str, Record]:
        flat = await self._run(RECORDS, "")
        return {name.decode(): _record(found) for name, found in zip(flat[::2], flat[1::2], strict=True)}

    async def close(self) -> None:
        await self._redis.close()

    async def _run(self, script: str, *arguments: str | float, safe: bool = True) -> Any:
        return await self._redis.run(script, [self._prefix], *arguments, safe=safe)


def _flat(counts: ScheduleCounts) -> list[str | int]:
    return [part for name, count in asdict(counts).items() if count for part in (name, count)]


def _record(flat: list[bytes]) -> Record:
    return record_from({name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)})
