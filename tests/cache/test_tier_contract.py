"""What every tier must do, whichever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import anyio.lowlevel
import pytest
import redis

from cache.memory import MemoryTier
from cache.redis import RedisTier
from cache.remote import RemoteTier
from harness.servers import RedisServer
from serving.storage.guard import BreakerState
from tests.cache.conftest import PATIENCE, DictTier

pytestmark = pytest.mark.anyio


class Remote:
    """The memory tier with the methods of a remote one."""

    state: BreakerState = "closed"

    def __init__(self, ttl_seconds: float) -> None:
        self._memory = MemoryTier(max_items=1000, max_bytes=1 << 20, ttl_seconds=ttl_seconds)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._memory.get(key) for key in keys]

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        for key, value in items.items():
            self._memory.put(key, value)

    async def close(self) -> None:
        self._memory.clear()


def make_tier(kind: str, url: str, ttl_seconds: float) -> RemoteTier:
    if kind == "redis":
        return RedisTier(url, ttl_seconds=ttl_seconds, timeout=PATIENCE)
    return Remote(ttl_seconds) if kind == "memory" else DictTier()


@pytest.fixture(params=["memory", "redis", "dictionary of the tests"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
async def any_tier(kind: str, shared_server: RedisServer, raw: redis.Redis) -> AsyncIterator[RemoteTier]:
    tier = make_tier(kind, shared_server.url, 60)
    yield tier
    await tier.close()


async def test_what_was_never_put_is_not_there(any_tier: RemoteTier) -> None:
    assert await any_tier.get_many([b"a", b"b"]) == [None, None]


async def test_values_come_in_the_order_of_the_keys(any_tier: RemoteTier) -> None:
    await any_tier.put_many({b"a": b"1", b"b": b"2"})
    assert await any_tier.get_many([b"b", b"nowhere", b"a", b"b"]) == [b"2", None, b"1", b"2"]


async def test_no_keys_get_no_values(any_tier: RemoteTier) -> None:
    await any_tier.put_many({})
    assert await any_tier.get_many([]) == []


@pytest.mark.parametrize("value", [b"", b"\x00\r\n$-1\r\n", bytes(range(256)), b"x" * 100_000])
async def test_any_bytes_come_back_as_they_were(any_tier: RemoteTier, value: bytes) -> None:
    await any_tier.put_many({b"\x00\r\n\xff": value})
    assert await any_tier.get_many([b"\x00\r\n\xff"]) == [value]


async def test_later_value_takes_the_place_of_the_earlier(any_tier: RemoteTier) -> None:
    await any_tier.put_many({b"a": b"1"})
    await any_tier.put_many({b"a": b"2"})
    assert await any_tier.get_many([b"a"]) == [b"2"]


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_value_is_forgotten_after_its_time(kind: str, shared_server: RedisServer, raw: redis.Redis) -> None:
    tier = make_tier(kind, shared_server.url, ttl_seconds=0.05)
    await tier.put_many({b"a": b"1"})
    with anyio.fail_after(5):
        while await tier.get_many([b"a"]) != [None]:
            await anyio.lowlevel.checkpoint()
    await tier.close()


async def test_closed_tier_can_be_used_again(any_tier: RemoteTier) -> None:
    await any_tier.put_many({b"a": b"1"})
    await any_tier.close()
    await any_tier.close()
    await any_tier.put_many({b"b": b"2"})
    assert await any_tier.get_many([b"b"]) == [b"2"]
