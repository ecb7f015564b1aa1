"""Redis as a store: Lua scripts that are each one step for everybody, with short timeouts and one retry.

Unlike a cache, a store is worth a second of waiting, and its caller must know when a call did not happen.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache.connection import connection_settings
from serving.errors import StoreUnavailable

LONGEST = 64 << 20
"""Bytes of the longest value that is read; nothing that is kept here comes near."""

BLOCK_SECONDS = 2.0
"""How long a call may wait in the server for something to happen."""

BROKEN = (RedisConnectionError, RedisTimeoutError, OSError)
AWAY = (RedisError, OSError, ValueError, RecursionError)
"""The last two are the parser's answers to a server that does not speak Redis."""

T = TypeVar("T")


class ScriptedRedis:
    """The connections of one process to one server. Building it connects to nothing, so it may be forked."""

    def __init__(self, url: str, *, timeout: float = 1.0, health_check_interval: float = 30.0) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""
        self._settings = connection_settings(url, LONGEST, timeout, health_check_interval)
        self._waiting = self._settings | {"max_connections": 1, "socket_timeout": BLOCK_SECONDS + timeout}
        self._deadline = 2.5 * timeout
        self._process = 0
        self._clients: dict[str, Redis] = {}
        self._inherited: list[object] = []

    async def run(self, script: str, keys: list[str], *arguments: bytes | str | float, safe: bool = True) -> Any:
        """What a Lua script answers. Raises StoreUnavailable.

        After a broken connection nobody knows whether the script was run: one that is `safe` to be run twice is tried
        once more.
        """

        async def call() -> Any:
            async with asyncio.timeout(self._deadline):
                # redis-py sends the hash, and the script itself only to a server that does not know it
                return await self._client("calls", self._settings).register_script(script)(keys, arguments)

        return await self._translate(call, attempts=2 if safe else 1)

    async def wait(self, *command: bytes | str | int) -> Any:
        """The answer of a command that blocks, for BLOCK_SECONDS at most; on a connection of its own."""

        async def call() -> Any:
            client: Any = self._client("waits", self._waiting)
            return await client.execute_command(*command)

        return await self._translate(call, attempts=1)

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        if self._process == os.getpid():
            clients, self._clients = self._clients, {}
            for client in clients.values():
                await client.aclose()

    def _client(self, purpose: str, settings: dict[str, Any]) -> Redis:
        process = os.getpid()
        if self._process != process:
            # kept, not collected: closing it here would take it out of the epoll set that both processes share
            self._inherited = [self._clients, self._inherited]
            self._clients = {}
            self._process = process
        if purpose not in self._clients:
            self._clients[purpose] = Redis.from_pool(BlockingConnectionPool(**settings))
        return self._clients[purpose]

    async def _translate(self, call: Callable[[], Awaitable[T]], attempts: int) -> T:
        for attempt in range(1, attempts + 1):
            try:
                return await _cancellable(call)
            except BROKEN as error:
                if attempt == attempts:
                    raise StoreUnavailable(f"Redis is away: {type(error).__name__}") from error
            except AWAY as error:
                raise StoreUnavailable(f"Redis refuses: {str(error)[:200]}") from error
        raise AssertionError("an attempt returns or raises")


async def _cancellable(call: Callable[[], Awaitable[T]]) -> T:
    """The call, cancelled when its task is: under Python 3.11 the library may lose that."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await call()
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
