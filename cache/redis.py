"""The Redis tier: shared by all workers and instances, and never worth waiting for.

A value is signed for its key (`serving/storage/seal.py`); one that is not is a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import InvalidResponse

from cache.memory import Stats
from serving.storage.background import BackgroundTask
from serving.storage.guard import Breaker, BreakerState, Guard, NotTried, ServerUnavailable
from serving.storage.redis import HEALTH_CHECK_INTERVAL, REFUSED, UNWELL, RedisClient, ValueTooLong
from serving.storage.seal import HEADER_BYTES, Seal

PREFIX = b"forkserve:"

MAX_VALUE_BYTES = 1 << 20

PROBE_SECONDS = 2.0
"""Between probes of a Redis that was unavailable; the breaker lets fewer and fewer of them through."""

T = TypeVar("T")


class RedisTier:
    """One MGET a lookup, one pipeline of SETs a write, nothing at all while the breaker is open.

    No method raises because Redis is unavailable. A value under a key never changes its meaning, so nothing is ever
    invalidated, only forgotten; a value of more than MAX_VALUE_BYTES is neither written nor read. Nothing is connected
    before the first call, so it may be built before the fork.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_seconds: float,
        timeout: float = 0.1,
        health_check_interval: float = HEALTH_CHECK_INTERVAL,
        breaker: Breaker | None = None,
        stats: Stats | None = None,
        seal: Seal | None = None,
    ) -> None:
        """`timeout` in seconds is for a whole call, connecting included. Raises InvalidRedisUrl."""
        self._client = RedisClient(
            url,
            timeout=timeout,
            max_value_bytes=MAX_VALUE_BYTES + HEADER_BYTES,
            health_check_interval=health_check_interval,
        )
        self._guard = Guard(
            timeout,  # the client's own timeouts are for each step, and would add up
            unwell=UNWELL,
            refused=REFUSED,
            breaker=breaker,
            events=("Redis is unavailable; continuing without it", "Redis connection established"),
            refusal="Redis refuses commands; continuing without it",
            log_first_success=True,
        )
        self._prober = BackgroundTask(self._probe, closing_seconds=0.0)
        self._ttl = max(1, round(ttl_seconds * 1000))
        self._stats = stats or Stats()
        self._seal = seal or Seal()

    @property
    def state(self) -> BreakerState:
        return self._guard.state

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value per key, None where Redis has none, is unavailable or holds something else."""
        found = await self._call(lambda redis: _fetch(redis, keys)) if keys else []
        if found is None:
            return [None] * len(keys)
        return [self._unseal(key, sealed) for key, sealed in zip(keys, found, strict=True)]

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        """Write the items if Redis takes them; the others are counted as dropped."""
        fitting = {key: value for key, value in items.items() if len(value) <= MAX_VALUE_BYTES}
        replies = await self._call(lambda redis: self._send(redis, fitting)) if fitting else []
        kept = 0 if replies is None else sum(not isinstance(reply, Exception) for reply in replies)
        self._stats.write_dropped += len(items) - kept

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        await self._prober.close()
        await self._client.close()

    def _unseal(self, key: bytes, sealed: Any) -> bytes | None:
        if sealed is None:
            return None
        value = self._seal.open(PREFIX + key, sealed) if isinstance(sealed, bytes) else None
        self._stats.malformed += value is None
        return value

    async def _send(self, redis: Redis, items: Mapping[bytes, bytes]) -> list[Any]:
        pipeline = redis.pipeline(transaction=False)
        for key, value in items.items():
            # .set() costs a quarter more than the command itself
            pipeline.execute_command("SET", PREFIX + key, self._seal.close(PREFIX + key, value), "PX", self._ttl)
        return await pipeline.execute(raise_on_error=False)

    async def _call(self, operation: Callable[[Redis], Awaitable[T]]) -> T | None:
        """Return the operation's result, or None if it was refused, failed or not tried."""
        try:
            async with self._guard.call():
                return await operation(self._client.get())
        except NotTried:
            self._prober.wake()
        except ValueTooLong:
            self._stats.malformed += 1  # the connection is closed, because the rest of the value is unread
        except (ServerUnavailable, *REFUSED):
            self._stats.errors += 1
            self._prober.wake()
        return None

    async def _probe(self) -> None:
        """Ask until Redis is back: without requests nothing else closes the breaker after an outage."""
        while self.state != "closed":
            await asyncio.sleep(PROBE_SECONDS)
            await self._call(lambda redis: redis.ping())


async def _fetch(redis: Redis, keys: Sequence[bytes]) -> list[Any]:
    found = await redis.mget([PREFIX + key for key in keys])
    if not isinstance(found, list) or len(found) != len(keys):
        raise InvalidResponse("the answer to MGET is not one value per key")
    return found
