"""Rate limits: a verdict on each request by the generic cell rate algorithm (GCRA), shared by all instances in Redis.

One moment is kept per client, its theoretical arrival time (TAT): when it will have paid for all requests that it has
sent, each costing one interval. A client that would be more than a whole burst in debt is refused, and not charged. A
moment in the past says nothing, so no client is remembered for longer than a burst lasts. ATM Forum, Traffic
Management 4.1 (1999), 4.4.2, as virtual scheduling.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, Protocol

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


class Limiter(Protocol):
    """Counts requests by client. Belongs to the processes that share it; connects to nothing before its first use."""

    rate: Rate

    async def take(self, client: bytes) -> RateVerdict:
        """Charge `client` for one request, unless it is refused."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class RedisLimiter:
    """A Limiter that counts the clients of all instances in Redis, with one script per request.

    Only requests that the table of this box allows reach Redis: too many for one box are too many for all, so a flood
    costs Redis no more than the rate. While Redis is unavailable the table decides, which has counted along.
    """

    def __init__(
        self,
        url: str,
        table: RateTable,
        *,
        patience: float = PATIENCE_SECONDS,
        timeout: float = 0.1,
        health_check_interval: float = HEALTH_CHECK_INTERVAL,
    ) -> None:
        """A request waits for `patience` seconds; a whole call, connecting included, may take `timeout`.

        Raises InvalidRedisUrl.
        """
        self.rate: Rate = table.rate
        self._table = table
        self._patience = patience
        self._arguments = (round(self.rate.interval * 1e6), self.rate.burst)
        self._client = RedisClient(
            url, timeout=timeout, max_value_bytes=MAX_ANSWER_BYTES, health_check_interval=health_check_interval
        )
        self._guard = Guard(
            timeout,
            unwell=UNWELL,
            refused=REFUSED,
            events=("Rate limits are not shared", "Rate limits are shared again"),
        )
        self._asking: set[asyncio.Task[RateVerdict | None]] = set()

    async def take(self, client: bytes) -> RateVerdict:
        """Charge `client` here and in Redis, unless it is refused."""
        here = self._table.count(client)
        if not here.allowed or self._guard.state == "open":
            return here
        asking = asyncio.get_running_loop().create_task(self._ask(client))
        # never cancelled: a client must be charged for what it sent, and the guard must learn whether Redis answers
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        await asyncio.wait({asking}, timeout=self._patience)
        return (asking.result() if asking.done() else None) or here

    async def close(self) -> None:
        """Wait for calls that are running, then disconnect."""
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._client.close()

    async def _ask(self, client: bytes) -> RateVerdict | None:
        """Return the verdict of Redis; None if it gives none."""
        try:
            async with self._guard.call():
                allowed, debt = await self._run(PREFIX + client.hex().encode())
        except (NotTried, ServerUnavailable, *REFUSED):
            return None
        return RateVerdict(allowed=bool(allowed), debt=debt / 1e6)

    async def _run(self, key: bytes) -> tuple[int, int]:
        answer: Any = await self._client.get().register_script(TAKE)([key], self._arguments)
        if not (isinstance(answer, list) and [type(number) for number in answer] == [int, int]):
            raise ValueError("the answer of the script is not two numbers")
        return answer[0], answer[1]


class RateHeaders:
    """The headers that tell a client about its rate: draft-ietf-httpapi-ratelimit-headers-10, in whole seconds."""

    def __init__(self, rate: Rate) -> None:
        self._burst = rate.burst
        self._interval = rate.interval
        window = math.ceil(rate.burst * rate.interval)
        self._policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % (rate.burst, window))

    def of(self, verdict: RateVerdict) -> Headers:
        """Return the headers: `r` requests are left now, and all of them after `t` seconds."""
        debt = verdict.debt
        left = self._burst - debt / self._interval + 1e-6 if verdict.allowed else 0.0
        # %d rounds down; seconds are rounded up
        return [self._policy, (b"ratelimit", b'"default";r=%d;t=%d' % (left, debt + 0.999999))]

    def retry_after(self, verdict: RateVerdict) -> float:
        """Seconds until the next request of a refused client is allowed."""
        return max(0.0, verdict.debt - (self._burst - 1) * self._interval)
