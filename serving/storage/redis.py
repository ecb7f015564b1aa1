"""Redis: how it is connected to, and Lua scripts that are each one atomic step for all processes."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, InvalidResponse, RedisError, ResponseError

from serving.errors import InvalidRedisUrl, StoreUnavailable
from serving.storage.guard import Breaker, Guard, PerProcess, ServerUnavailable

MAX_STORED_BYTES = 64 << 20
"""Longest value that a store reads; nothing that we keep comes near it."""

BLOCK_SECONDS = 2.0
"""Seconds that a blocking command may wait in the server for something to happen."""

HEALTH_CHECK_INTERVAL = 30.0
"""Seconds after which an idle connection is checked before it is used."""


class ValueTooLong(InvalidResponse):
    """Redis holds a longer value under a key than we would ever write."""


REFUSED = (ResponseError, BusyLoadingError, ValueTooLong)
"""The server is well and says no: out of memory, read-only, loading its data, not permitted."""

MAX_REASON_CHARACTERS = 200

UNWELL = (RedisError, OSError, ValueError, RecursionError)
"""The last two are what the parser raises when a server does not speak Redis."""


def describe(error: Exception) -> str:
    """The reason of a failed call; redis-py keeps only in the type what a cluster's `MOVED` or `CROSSSLOT` says."""
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]


class RedisClient:
    """The connections of this process to one server. Building it connects to nothing, so it may be forked.

    Connections time out soon, are never retried, and do not trust what they receive: with redis-py's own settings a
    hung server costs a request 59 s.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        max_value_bytes: int,
        health_check_interval: float = HEALTH_CHECK_INTERVAL,
        **pool: Any,
    ) -> None:
        """Connecting, each write and each read may take `timeout` seconds, waiting for a connection half of that.

        Values of more than `max_value_bytes` are not read. The URL says where to connect to, never how; `pool` holds
        further settings of the connection pool. Raises InvalidRedisUrl.
        """
        self._settings: dict[str, Any] = {
            "max_connections": 16,
            "timeout": timeout / 2,
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": health_check_interval,
            "parser_class": _bounded_parser(max_value_bytes),
            "protocol": 2,  # needs no HELLO
            "driver_info": None,  # without CLIENT SETINFO a new connection is usable one round trip sooner
            **pool,
        }
        try:
            _check_database(url)
            given = parse_url(url)
            if "path" not in given:
                self._settings["socket_keepalive"] = True
            self._settings = {**given, **self._settings}
            made = BlockingConnectionPool(**self._settings)
            made.connection_class(**made.connection_kwargs)  # connects to nothing, but refuses unknown options
        except (RedisError, TypeError, ValueError):
            # `from None`: the reason may quote a password with a "/" in it
            rule = "redis://, rediss:// or unix://, special characters escaped, and a database by its number, as in /0"
            raise InvalidRedisUrl(f"REDIS_URL {_without_secrets(url)!r} is not valid: it must be {rule}") from None
        self._client = PerProcess(self._connect)

    def get(self) -> Redis:
        """Return the client of this process; its connections are opened when they are needed."""
        return self._client.get()

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        client = self._client.release()
        if client is not None:
            await client.aclose()

    def _connect(self) -> Redis:
        return Redis.from_pool(BlockingConnectionPool(**self._settings))


def _check_database(url: str) -> None:
    """Raises ValueError for a path that redis-py would take for database 0, as it does what is no number."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError


def _without_secrets(url: str) -> str:
    """The scheme and host of a URL that is not valid; whatever might be a password is left out, wherever it is."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    if not separator or scheme not in ("redis", "rediss", "unix"):
        return "..."
    place = rest.rpartition("@")[2].partition("/")[0]
    host, colon, port = place.rpartition(":")
    is_whole = not colon or place.endswith("]") or port.isdecimal()
    return f"{scheme}://{place if is_whole else host}" + ("" if is_whole else ":...")


def _bounded_parser(max_value_bytes: int) -> type[_AsyncRESP2Parser]:
    """Return a parser class that raises ValueTooLong before it reads more than `max_value_bytes`.

    redis-py has no such bound, and half a gigabyte planted under a live key would be read into each worker. The class
    it extends is private: redis is pinned below the next major version, and a test plants such a value.
    """

    class BoundedParser(_AsyncRESP2Parser):
        async def _read(self, length: int) -> bytes:
            if length > max_value_bytes:
                raise ValueTooLong(f"a value of {length} bytes exceeds the limit of {max_value_bytes}")
            return await super()._read(length)

    return BoundedParser


class ScriptedRedis:
    """Redis as a store: unlike a cache it is worth a second of waiting, and its caller must know that a call failed."""

    def __init__(self, url: str, *, timeout: float = 1.0, health_check_interval: float = HEALTH_CHECK_INTERVAL) -> None:
        """Connecting, writing and reading may each take `timeout` seconds. Raises InvalidRedisUrl."""

        def client(**pool: Any) -> RedisClient:
            return RedisClient(
                url,
                timeout=timeout,
                max_value_bytes=MAX_STORED_BYTES,
                health_check_interval=health_check_interval,
                **pool,
            )

        self._client = client()
        self._waiting_client = client(max_connections=1, socket_timeout=BLOCK_SECONDS + timeout)
        self._guard = _store_guard(2.5 * timeout)
        self._waiting_guard = _store_guard(2.5 * timeout + BLOCK_SECONDS)

    async def run(self, script: str, keys: list[str], *arguments: bytes | str | float, safe: bool = True) -> Any:
        """Return what a Lua script returns. Raises StoreUnavailable.

        After a broken connection nobody knows whether the script was run: one that is `safe` to be run twice is tried
        once more.
        """
        try:
            return await self._run(script, keys, arguments)
        except StoreUnavailable as error:
            if not safe or not isinstance(error.__cause__, ServerUnavailable):
                raise
        return await self._run(script, keys, arguments)

    async def wait(self, *command: bytes | str | int) -> Any:
        """Return the answer of a command that blocks for up to BLOCK_SECONDS, on a connection of its own."""
        client: Any = self._waiting_client.get()
        async with _store_call(self._waiting_guard):
            return await client.execute_command(*command)

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        await self._client.close()
        await self._waiting_client.close()

    async def _run(self, script: str, keys: list[str], arguments: Sequence[bytes | str | float]) -> Any:
        async with _store_call(self._guard):
            # redis-py sends the hash, and the script itself only to a server that does not know it
            return await self._client.get().register_script(script)(keys, arguments)


def _store_guard(deadline: float) -> Guard:
    """Return a guard that tries every call: an accepted job must not be lost because others have failed before."""
    return Guard(deadline, unwell=UNWELL, refused=REFUSED, breaker=Breaker(failures=math.inf))


@asynccontextmanager
async def _store_call(guard: Guard) -> AsyncIterator[None]:
    try:
        async with guard.call():
            yield
    except ServerUnavailable as error:
        raise StoreUnavailable(f"Redis is unavailable: {error}") from error
    except REFUSED as error:
        raise StoreUnavailable(f"Redis refuses: {describe(error)}") from error
