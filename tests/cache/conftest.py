"""Fixtures of the cache's tests: clocks and tiers that a test controls."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import redis

from cache.redis import RedisTier
from harness.servers import RedisServer
from serving.storage.guard import BreakerState

PATIENCE = 5.0
"""Seconds for calls to a server that is well: a busy machine must not make a test of anything else fail."""


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class DictTier(RedisTier):
    """A dictionary in place of Redis. While its gate is shut, calls wait."""

    state: BreakerState = "closed"

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.lookups: list[list[bytes]] = []
        self.writes: list[dict[bytes, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.lookups.append(list(keys))
        await self.gate.wait()
        return [self.kept.get(key) for key in keys]

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        self.writes.append(dict(items))
        await self.gate.wait()
        self.kept.update(items)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait for a lookup as long as it takes; in production a slow cache is no help."""
    monkeypatch.setattr("cache.remote.PATIENCE_SECONDS", PATIENCE)


@pytest.fixture
async def tier(shared_server: RedisServer, raw: redis.Redis) -> AsyncIterator[RedisTier]:
    tier = RedisTier(shared_server.url, ttl_seconds=60, timeout=PATIENCE)
    yield tier
    await tier.close()


async def turns(count: int = 20) -> None:
    """Let every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server in this event loop; at the end its clients are disconnected and their handlers done."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await handle(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await turns()  # who was just accepted gets a handler first
    for task in handlers:
        task.cancel()
    await asyncio.gather(*handlers)
    await server.wait_closed()
