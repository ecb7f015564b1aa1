"""The clients of all instances, counted in Redis by its clock; without it, this box decides for itself."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from cache.breaker import Breaker
from cache.connection import connection_settings
from serving.shared.rate_table import Rate, SharedTable, Verdict

log = structlog.get_logger(__name__)

TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
-- bounded, whatever is kept there: a clock that was set back must not lock anybody out
local debt = math.min(math.max((tonumber(redis.call('GET', KEYS[1])) or 0) - now, 0), interval * burst)
if debt > interval * (burst - 1) then return {0, debt} end
debt = debt + interval
redis.call('SET', KEYS[1], string.format('%.0f', now + debt), 'PX', math.ceil(debt / 1000))
return {1, debt}
"""
"""In microseconds: the argument is the interval, then the burst; the answer whether it is allowed, then the debt."""

LONGEST = 4096
"""Bytes of an answer; the server's own errors are shorter."""

PATIENCE = 0.02
"""Seconds that a request waits for what Redis says of it; after that this box decides. The call itself goes on."""

REFUSED = (ResponseError, BusyLoadingError)
AWAY = (RedisError, OSError, ValueError, RecursionError)
"""As in cache/redis.py."""


class RedisLimiter:
    """One script a request, and only for those whom this box alone would let through.

    What is too much for one box is too much for all, so a flood costs Redis no more than the rate. While Redis is away
    the table decides, which has counted along.
    """

    def __init__(
        self,
        url: str,
        table: SharedTable,
        *,
        prefix: str = "forkserve:limit:",
        patience: float = PATIENCE,
        timeout: float = 0.1,
        health_check_interval: float = 30.0,
        breaker: Breaker | None = None,
    ) -> None:
        """A request waits for `patience` seconds; a whole call, connecting included, may take `timeout`.

        Raises InvalidRedisUrl.
        """
        self._patience = patience
        self.rate: Rate = table.rate
        self._table = table
        self._prefix = prefix.encode()
        self._connection = connection_settings(url, LONGEST, timeout, health_check_interval)
        self._deadline = timeout
        self._breaker = breaker or Breaker()
        self._arguments = (round(self.rate.interval * 1e6), self.rate.burst)
        self._redis: Redis | None = None
        self._inherited: Redis | None = None
        self._process = 0
        self._asking: set[asyncio.Task[Verdict | None]] = set()

    async def take(self, client: bytes) -> Verdict:
        """See Limiter."""
        here = self._table.count(client)
        if not here.allowed:
            return here
        attempt = self._breaker.begin()
        if attempt is None:
            return here
        asking = asyncio.get_running_loop().create_task(self._ask(client, attempt))
        try:
            await asyncio.wait({asking}, timeout=self._patience)
        finally:
            # nobody may cancel it: what it charges is charged, and it learns whether Redis is there
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        return (asking.result() if asking.done() else None) or here

    async def _ask(self, client: bytes, attempt: int) -> Verdict | None:
        """What Redis says; None if it says nothing. Every end is reported to the breaker."""
        try:
            async with asyncio.timeout(self._deadline):
                allowed, debt = await self._run(self._prefix + client.hex().encode())
        except REFUSED:
            self._breaker.succeeded(attempt)  # it is there, and full or read-only
            return None
        except AWAY as error:
            if self._breaker.failed(attempt):
                log.warning("Rate limits are not shared", reason=f"{type(error).__name__}: {error}")
            return None
        except BaseException:
            self._breaker.abandoned(attempt)
            raise
        if self._breaker.succeeded(attempt):
            log.info("Rate limits are shared again")
        return Verdict(allowed=bool(allowed), debt=debt / 1e6)

    async def close(self) -> None:
        """See Limiter."""
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._redis is not None and self._process == os.getpid():
            redis, self._redis = self._redis, None
            await redis.aclose()

    async def _run(self, key: bytes) -> tuple[int, int]:
        answer: Any = await self._client().register_script(TAKE)([key], self._arguments)
        if not (isinstance(answer, list) and [type(number) for number in answer] == [int, int]):
            raise ValueError("the answer of the script is not two numbers")
        return answer[0], answer[1]

    def _client(self) -> Redis:
        process = os.getpid()
        if self._redis is None or self._process != process:
            self._inherited = self._redis  # kept, not collected: see cache/redis.py
            self._redis = Redis.from_pool(BlockingConnectionPool(**self._connection))
            self._process = process
        return self._redis
