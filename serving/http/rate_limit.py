"""Rate limits: a verdict on each request by the generic cell rate algorithm (GCRA), shared by all instances in Redis.

One moment is kept per client, its theoretical arrival time (TAT): when it will have paid for all requests that it has
sent, each costing one interval. A client that would be more than a whole burst in debt is refused, and not charged. A
moment in the past says nothing, so no client is remembered for longer than a burst lasts. ATM Forum, Traffic
Management 4.1 (1999), 4.4.2, as virtual scheduling.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.http.body import Headers
from serving.shared.rate_table import Rate, RateTable, RateVerdict
from serving.storage.guard import Guard, NotTried, ServerUnavailable
from serving.storage.redis import HEALTH_CHECK_INTERVAL, REFUSED, UNWELL, RedisClient

TAKE = Path(__file__).with_name("rate_limit.lua").read_text()

PREFIX = b"forkserve:limit:"

MAX_ANSWER_BYTES = 4096
"""Longest answer that is read; the server's own errors are shorter."""

PATIENCE_SECONDS = 0.02
"""Seconds that a request waits for the verdict of Redis; after that this box decides. The call itself goes on."""


class Limiter:
    """Counts requests by client: in the table of this box, and in Redis for all instances, with one script per request.

    Only requests that the table allows reach Redis: too many for one box are too many for all, so a flood costs Redis
    no more than the rate. While Redis is unavailable the table decides, which has counted along. Belongs to the
    processes that share the table; connects to nothing before its first use.
    """

    def __init__(
        self,
        table: RateTable,
        redis_url: str = "",
        *,
        patience: float = PATIENCE_SECONDS,
        health_check_interval: float = HEALTH_CHECK_INTERVAL,
    ) -> None:
        """Without `redis_url` this box counts alone. A request waits for Redis for `patience` seconds.

        A whole call, connecting included, may take five times as long. Raises InvalidRedisUrl.
        """
        self._table = table
        self._patience = patience
        timeout = 5 * patience
        self._client: RedisClient | None = None
        if redis_url:
            self._client = RedisClient(
                redis_url,
                timeout=timeout,
                max_value_bytes=MAX_ANSWER_BYTES,
                health_check_interval=health_check_interval,
            )
        self._guard = Guard(
            timeout,
            unwell=UNWELL,
            refused=REFUSED,
            events=("Rate limits are not shared", "Rate limits are shared again"),
            refusal="Rate limits are not shared: Redis refuses",
        )
        self._asking: set[asyncio.Task[RateVerdict | None]] = set()

    async def take(self, client: bytes, rate: Rate | None = None) -> RateVerdict:
        """Charge `client` for one request, unless it is refused; without a `rate` by that of the table."""
        here = self._table.count(client, rate)
        if self._client is None or not here.allowed or self._guard.state == "open":
            return here
        asking = asyncio.get_running_loop().create_task(self._ask(self._client, client, rate or self._table.rate))
        # never cancelled: a client must be charged for what it sent, and the guard must learn whether Redis answers
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        await asyncio.wait({asking}, timeout=self._patience)
        return (asking.result() if asking.done() else None) or here

    async def close(self) -> None:
        """Wait for calls that are running, then disconnect."""
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def headers(self, verdict: RateVerdict, rate: Rate | None = None, policy: bytes = b"default") -> Headers:
        """Say that `r` requests are left, and all after `t` whole seconds: draft-ietf-httpapi-ratelimit-headers-10."""
        rate, debt = rate or self._table.rate, verdict.debt
        left = rate.burst - debt / rate.interval + 1e-6 if verdict.allowed else 0.0
        # %d rounds down; seconds are rounded up
        return [
            (b"ratelimit-policy", b'"%s";q=%d;w=%d' % (policy, rate.burst, math.ceil(rate.burst * rate.interval))),
            (b"ratelimit", b'"%s";r=%d;t=%d' % (policy, left, debt + 0.999999)),
        ]

    def retry_after(self, verdict: RateVerdict, rate: Rate | None = None) -> float:
        """Seconds until the next request of a refused client is allowed."""
        rate = rate or self._table.rate
        return max(0.0, verdict.debt - (rate.burst - 1) * rate.interval)

    async def _ask(self, redis: RedisClient, client: bytes, rate: Rate) -> RateVerdict | None:
        """Return the verdict of Redis; None if it gives none."""
        arguments = (round(rate.interval * 1e6), rate.burst)
        try:
            async with self._guard.call():
                answer: Any = await redis.get().register_script(TAKE)([PREFIX + client.hex().encode()], arguments)
                if not (isinstance(answer, list) and [type(number) for number in answer] == [int, int]):
                    raise ValueError("the answer of the script is not two numbers")
        except (NotTried, ServerUnavailable, *REFUSED):
            return None
        return RateVerdict(allowed=bool(answer[0]), debt=answer[1] / 1e6)


@dataclass(frozen=True, slots=True)
class Limiters:
    """Those of a service: by client address, where RATE_LIMIT is set, and by key, where there are keys."""

    of_addresses: Limiter | None
    of_keys: Limiter | None

    async def close(self) -> None:
        """Close both."""
        for limiter in (self.of_addresses, self.of_keys):
            if limiter is not None:
                await limiter.close()
