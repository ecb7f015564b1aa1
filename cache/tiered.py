"""The cache that requests see: memory first, then Redis, then one computation for all requests that ask at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import structlog

from cache.flight import Answer, Flights, Lead
from cache.memory import MemoryTier, Stats
from cache.redis import RedisTier
from cache.remote import BackgroundTier
from serving.storage.guard import BreakerState
from serving.storage.redis import HEALTH_CHECK_INTERVAL

Compute: TypeAlias = Callable[[list[int]], Awaitable[Sequence[bytes]]]
"""From positions in the keys that were asked for to one value each, in that order."""

log = structlog.get_logger(__name__)


def build_cache(
    *,
    max_items: int,
    max_bytes: int,
    ttl_seconds: float,
    redis_url: str = "",
    redis_timeout: float = 0.1,
    redis_health_check_interval: float = HEALTH_CHECK_INTERVAL,
) -> TieredCache:
    """Build memory in front of Redis, or memory alone without a `redis_url`; connects to nothing.

    To be called before the fork. Raises InvalidRedisUrl.
    """
    stats = Stats()
    memory = MemoryTier(max_items=max_items, max_bytes=max_bytes, ttl_seconds=ttl_seconds, stats=stats)
    if not redis_url:
        log.info("Redis caching disabled")
        return TieredCache(memory, stats=stats)
    remote = RedisTier(
        redis_url,
        ttl_seconds=ttl_seconds,
        timeout=redis_timeout,
        health_check_interval=redis_health_check_interval,
        stats=stats,
    )
    return TieredCache(memory, remote, stats=stats)


class TieredCache:
    """Memory alone, or memory in front of a remote tier. A value from the remote starts a new life in memory."""

    def __init__(self, memory: MemoryTier, remote: RedisTier | None = None, *, stats: Stats | None = None) -> None:
        self.stats = stats or Stats()
        self._memory = memory
        self._remote = None if remote is None else BackgroundTier(remote, stats=self.stats)
        self._flights = Flights()

    @property
    def is_local(self) -> bool:
        """Whether lookups need no network."""
        return self._remote is None

    @property
    def redis_state(self) -> BreakerState | Literal["disabled"]:
        """State of the breaker in front of Redis, for the health check."""
        return "disabled" if self._remote is None else self._remote.state

    async def get_or_compute(self, keys: Sequence[bytes], compute: Compute) -> list[Answer]:
        """Return a value for each key, and its source.

        `compute` is called once, for all keys that neither tier has and that no other caller is computing; of equal
        keys only the first is computed. Its errors are raised here and in those who wait for the same keys.
        """
        found = [self._memory.get(key) for key in keys]
        if None not in found:
            self.stats.hits_memory += len(found)
            return [(value, "hit-memory") for value in found if value is not None]
        missing: dict[bytes, int] = {}
        for position, (key, value) in enumerate(zip(keys, found, strict=True)):
            if value is None:
                missing.setdefault(key, position)
        shared = await self._flights.share(missing, self._leading(missing, compute))
        if len(missing) == len(keys):
            answers = [shared[key] for key in keys]
        else:
            answers = []
            for position, (key, value) in enumerate(zip(keys, found, strict=True)):
                if value is not None:
                    answers.append((value, "hit-memory"))
                elif missing[key] == position:
                    answers.append(shared[key])
                else:
                    answers.append((shared[key][0], "coalesced"))
        self._count(answers)
        return answers

    def keep(self, items: Mapping[bytes, bytes]) -> None:
        """Keep values in memory at once, remotely soon."""
        for key, value in items.items():
            self._memory.put(key, value)
        if self._remote is not None:
            self._remote.keep(items)

    async def close(self) -> None:
        """Write what is not yet written, for a second at most, and disconnect."""
        if self._remote is not None:
            await self._remote.close()
        self._memory.clear()

    def _leading(self, positions: Mapping[bytes, int], compute: Compute) -> Lead:
        async def lead(keys: list[bytes]) -> dict[bytes, Answer]:
            answers = {} if self._remote is None else await self._find(self._remote, keys)
            unknown = [key for key in keys if key not in answers] if answers else keys
            if unknown:
                values = await compute([positions[key] for key in unknown])
                computed = dict(zip(unknown, values, strict=True))
                self.keep(computed)
                for key, value in computed.items():
                    answers[key] = (value, "miss")
            return answers

        return lead

    async def _find(self, remote: BackgroundTier, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        found: dict[bytes, Answer] = {}
        for key, value in zip(keys, await remote.find(keys), strict=True):
            if value is not None:
                self._memory.put(key, value)
                found[key] = (value, "hit-redis")
        return found

    def _count(self, answers: Sequence[Answer]) -> None:
        if len(answers) == 1 and answers[0][1] == "miss":
            self.stats.misses += 1
            return
        sources = [source for _, source in answers]
        self.stats.hits_memory += sources.count("hit-memory")
        self.stats.hits_redis += sources.count("hit-redis")
        self.stats.misses += sources.count("miss")
        self.stats.coalesced += sources.count("coalesced")
