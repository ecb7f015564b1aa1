"""How Redis is connected to: with short timeouts, no retries, and no trust in what it sends."""

from __future__ import annotations

from typing import Any

from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, RedisError


class InvalidRedisUrl(ValueError):
    """The URL of Redis cannot be used; the message does not repeat it, for it may hold a password."""


class ValueTooLong(InvalidResponse):
    """Redis holds more under a key than this cache would ever write."""


def connection_settings(url: str, longest: int, timeout: float, health_check_interval: float) -> dict[str, Any]:
    """What a BlockingConnectionPool is made with: where to connect is the URL's affair, how is ours.

    Connecting, writing and reading may each take `timeout` seconds, and half of that the wait for one of the sixteen
    connections; with redis-py's own settings a hung server costs a request 59 s. Values of more than `longest` bytes
    are not read. Raises InvalidRedisUrl.
    """
    settings: dict[str, Any] = {
        "max_connections": 16,
        "timeout": timeout / 2,
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": health_check_interval,
        "parser_class": bounded_parser(longest),
        "protocol": 2,  # needs no HELLO
        "driver_info": None,  # nor a CLIENT SETINFO: a new connection is one round trip sooner of use
    }
    try:
        given = parse_url(url)
        if "path" not in given:
            settings["socket_keepalive"] = True
        settings = {**given, **settings}
        pool = BlockingConnectionPool(**settings)
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but refuses unknown options
    except (RedisError, TypeError, ValueError):
        # `from None`: the reason may quote a password with a "/" in it
        raise InvalidRedisUrl("is not redis://, rediss:// or unix:// with special characters escaped") from None
    return settings


def bounded_parser(longest: int) -> type[_AsyncRESP2Parser]:
    """A parser class for `redis.asyncio` that raises ValueTooLong before it reads more than `longest` bytes.

    redis-py has no such bound, and half a gigabyte planted under a live key would be read into each worker. The class
    it extends is private: redis is pinned below the next major version, and a test plants such a value.
    """

    class BoundedParser(_AsyncRESP2Parser):
        async def _read(self, length: int) -> bytes:
            if length > longest:
                raise ValueTooLong(f"a value of {length} bytes, where {longest} is the most")
            return await super()._read(length)

    return BoundedParser
