"""The cache that requests see: memory first, then Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import structlog

from cache.flight import Answer
from cache.memory import MemoryTier, Stats
from cache.redis import RedisTier
from cache.remote import BackgroundTier
from serving.storage.guard import BreakerState
from serving.storage.redis import HEALTH_CHECK_INTERVAL
from serving.storage.seal import Seal

log = structlog.get_logger(__name__)


def build_cache(
    *,
    max_items: int,
    max_bytes: int,
    ttl_seconds: float,
    redis_url: str = "",
    redis_health_check_interval: float = HEALTH_CHECK_INTERVAL,
    seal: Seal | None = None,
) -> TieredCache:
    """Build memory in front of Redis, or memory alone without a `redis_url`; connects to nothing.

    `seal` signs what is kept in Redis. To be called before the fork. Raises InvalidRedisUrl.
    """
    stats = Stats()
    memory = MemoryTier(max_items=max_items, max_bytes=max_bytes, ttl_seconds=ttl_seconds, stats=stats)
    if not redis_url:
        log.info("Redis caching disabled")
        return TieredCache(memory, stats=stats)
    remote = RedisTier(
        redis_url,
        ttl_seconds=ttl_seconds,
        health_check_interval=redis_health_check_interval,
        stats=stats,
        seal=seal,
    )
    return TieredCache(memory, remote, stats=stats)


class TieredCache:
    """Memory alone, or memory in front of a remote tier. A value from the remote starts a new life in memory."""

    def __init__(self, memory: MemoryTier, remote: RedisTier | None = None, *, stats: Stats) -> None:
        self.stats = stats
        self._memory = memory
        self._redis = remote
        self._remote = None if remote is None else BackgroundTier(remote, stats)

    @property
    def is_local(self) -> bool:
        """True if lookups need no network."""
        return self._remote is None

    @property
    def redis_state(self) -> BreakerState | Literal["disabled"]:
        """State of the breaker in front of Redis, for the health check."""
        return "disabled" if self._redis is None else self._redis.state

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values in memory, None for each that is not there."""
        return self._memory.find(keys)

    async def find_remotely(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the values in Redis, by key; they are in memory from then on."""
        found: dict[bytes, Answer] = {}
        if self._remote is None or not keys:
            return found
        for key, value in zip(keys, await self._remote.find(keys), strict=True):
            if value is not None:
                self._memory.put(key, value)
                found[key] = (value, "hit-redis")
        return found

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

    def count(self, answers: Sequence[Answer]) -> None:
        """Count the sources of a request's answers."""
        sources = [source for _, source in answers]
        if sources == ["miss"]:
            self.stats.misses += 1
            return
        self.stats.hits_memory += sources.count("hit-memory")
        self.stats.hits_redis += sources.count("hit-redis")
        self.stats.misses += sources.count("miss")
        self.stats.coalesced += sources.count("coalesced")
