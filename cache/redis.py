"""The Redis tier: shared by all workers and instances, and never worth waiting for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import BusyLoadingError, InvalidResponse, RedisError, ResponseError

from cache.breaker import Breaker, State
from cache.connection import ValueTooLong, connection_settings
from cache.envelope import HEADER_BYTES, seal, unseal
from cache.stats import Stats

log = structlog.get_logger(__name__)

REFUSED = (ResponseError, BusyLoadingError)
"""The server is there and says no: out of memory, read-only, loading its data, not permitted."""

AWAY = (RedisError, OSError, ValueError, RecursionError)
"""The last two are the parser's answers to a server that does not speak Redis."""

T = TypeVar("T")


class RedisTier:
    """One MGET a lookup, one pipeline of SETs a write, nothing at all while the breaker is open.

    Nothing is connected before the first call, so it may be built before the fork; a connection that is nevertheless
    inherited is left alone and replaced. A value of more than `max_value_bytes` is neither written nor read.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_seconds: float,
        prefix: bytes = b"forkserve:",
        secret: bytes = b"",
        max_value_bytes: int = 1 << 20,
        timeout: float = 0.1,
        health_check_interval: float = 30.0,
        breaker: Breaker | None = None,
        stats: Stats | None = None,
    ) -> None:
        """`timeout` in seconds is for a whole call, connecting included. Raises InvalidRedisUrl."""
        self._connection = connection_settings(url, max_value_bytes + HEADER_BYTES, timeout, health_check_interval)
        # getting a connection, connecting and each reply have timeouts of their own, which would add up
        self._deadline = timeout
        self._ttl = max(1, round(ttl_seconds * 1000))
        self._prefix = prefix
        self._secret = secret
        self._max_value_bytes = max_value_bytes
        self._breaker = breaker or Breaker()
        self._stats = stats or Stats()
        self._redis: Redis | None = None
        self._inherited: Redis | None = None
        self._process = 0
        self._established = False

    @property
    def state(self) -> State:
        """Of the breaker: "closed" is the good one."""
        return self._breaker.state

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        found = await self._call(lambda redis: self._fetch(redis, keys))
        if found is None:
            return [None] * len(keys)
        return [self._unseal(key, sealed) for key, sealed in zip(keys, found, strict=True)]

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        fitting = {key: value for key, value in items.items() if len(value) <= self._max_value_bytes}
        replies = await self._call(lambda redis: self._send(redis, fitting)) if fitting else []
        kept = 0 if replies is None else sum(not isinstance(reply, Exception) for reply in replies)
        self._stats.write_dropped += len(items) - kept

    async def close(self) -> None:
        if self._redis is not None and self._process == os.getpid():
            redis, self._redis = self._redis, None
            await redis.aclose()

    def _unseal(self, key: bytes, sealed: Any) -> bytes | None:
        if sealed is None:
            return None
        value = unseal(key, sealed, self._secret) if isinstance(sealed, bytes) else None
        self._stats.malformed += value is None
        return value

    async def _fetch(self, redis: Redis, keys: Sequence[bytes]) -> list[Any]:
        found = await redis.mget([self._prefix + key for key in keys])
        if not isinstance(found, list) or len(found) != len(keys):
            raise InvalidResponse("the answer to MGET is not one value a key")
        return found

    async def _send(self, redis: Redis, items: Mapping[bytes, bytes]) -> list[Any]:
        pipeline = redis.pipeline(transaction=False)
        for key, value in items.items():
            # .set() costs a quarter more than the command itself
            pipeline.execute_command("SET", self._prefix + key, seal(key, value, self._secret), "PX", self._ttl)
        return await pipeline.execute(raise_on_error=False)

    async def _call(self, operation: Callable[[Redis], Awaitable[T]]) -> T | None:
        """The operation's result, or None when it was refused, failed or not tried."""
        attempt = self._breaker.begin()
        if attempt is None:
            return None
        try:
            async with asyncio.timeout(self._deadline):
                result = await operation(self._client())
        except REFUSED:
            self._stats.errors += 1
            self._succeeded(attempt)
            return None
        except ValueTooLong:
            # the connection is gone with what is left unread of the value; the server is well
            self._stats.malformed += 1
            self._succeeded(attempt)
            return None
        except AWAY as error:
            self._failed(attempt, error)
            return None
        except BaseException:
            self._breaker.abandoned(attempt)
            raise
        self._succeeded(attempt)
        return result

    def _client(self) -> Redis:
        process = os.getpid()
        if self._redis is None or self._process != process:
            # two processes on one socket would get each other's answers; and the parent's is kept, not collected,
            # because closing it here would take it out of the epoll set that both share
            self._inherited = self._redis
            self._redis = Redis.from_pool(BlockingConnectionPool(**self._connection))
            self._process = process
        return self._redis

    def _succeeded(self, attempt: int) -> None:
        if self._breaker.succeeded(attempt) or not self._established:
            self._established = True
            log.info("Redis connection established")

    def _failed(self, attempt: int, error: Exception) -> None:
        self._stats.errors += 1
        if self._breaker.failed(attempt):
            log.warning("Redis is away, going on without it", reason=f"{type(error).__name__}: {error}")
