"""Builds what counts requests, from plain values; connects to nothing."""

from __future__ import annotations

from serving.http.rate_limit import Limiter
from serving.http.rate_limit_redis import RedisLimiter
from serving.shared.rate_table import Rate, SharedTable


def build_limiter(rate: Rate, redis_url: str = "", *, redis_health_check_interval: float = 30.0) -> Limiter:
    """To be called before the fork. Raises InvalidRedisUrl."""
    table = SharedTable(rate)
    if not redis_url:
        return table
    return RedisLimiter(redis_url, table, health_check_interval=redis_health_check_interval)
