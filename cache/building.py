"""Builds the cache of an app from plain values; connects to nothing."""

from __future__ import annotations

import structlog

from cache.gathering import GatheringTier
from cache.memory import MemoryTier
from cache.redis import RedisTier
from cache.stats import Stats
from cache.tiered import TieredCache

log = structlog.get_logger(__name__)


def build_cache(
    *,
    max_items: int,
    max_bytes: int,
    ttl_seconds: float,
    redis_url: str = "",
    redis_timeout: float = 0.1,
    redis_health_check_interval: float = 30.0,
) -> TieredCache:
    """Memory in front of Redis, or memory alone without a `redis_url`. To be called before the fork.

    Raises InvalidRedisUrl.
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
    return TieredCache(memory, GatheringTier(remote), stats=stats)
