"""Cancels HTTP calls at random moments and counts the connections that are left over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx

from harness.stub import reply, serving
from serving.storage.http import Call, Outbound

CONNECTIONS = 10
AT_ONCE = 20


async def cancel_at_random(fetch: Callable[[], Awaitable[Any]], calls: int) -> int:
    """Make `calls` calls, some at once; each other one is cancelled after some turns of the loop. How many were not."""
    chance = random.Random(1)
    done = 0

    async def call(turns: int | None) -> None:
        nonlocal done
        task = asyncio.ensure_future(fetch())
        if turns is not None:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        with suppress(asyncio.CancelledError, httpx.PoolTimeout):
            await task
            done += 1

    for first in range(0, calls, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, calls))
        await asyncio.gather(*(call(chance.randrange(60) if number % 2 else None) for number in numbers))
    return done


def slots(client: httpx.AsyncClient) -> tuple[int, int]:
    """Connections that a client has open, and calls that it believes to be under way."""
    pool: Any = client._transport._pool  # type: ignore[attr-defined]  # noqa: SLF001 - nothing public says it
    return len(pool.connections), len(pool._requests)  # noqa: SLF001


async def leak_of_plain(calls: int) -> tuple[int, int, int]:
    """The control: an httpx client as it comes. Calls done, connections and calls left over."""
    async with serving(lambda _number, _head: reply(200, b"ok")) as stub:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=5)
        async with httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(5, pool=0.2), trust_env=False) as client:
            done = await cancel_at_random(lambda: client.get(stub.url), calls)
            return done, *slots(client)


async def leak_of_ours(calls: int) -> tuple[int, int, int]:
    """Calls done through Outbound, and connections and calls left over."""
    async with serving(lambda _number, _head: reply(200, b"ok")) as stub:
        outbound = Outbound(max_connections=CONNECTIONS, max_calls=1000)
        done = await cancel_at_random(lambda: outbound.fetch(Call(stub.url)), calls)
        await outbound.settle()
        client = outbound._client.own  # noqa: SLF001 - nothing public says it
        assert client is not None
        left = (slots(client)[0], outbound.calls)
        await outbound.fetch(Call(stub.url))
        await outbound.close()
        return done, *left
