"""The contract of the Redis tier, and of the dictionary that replaces it in other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio.lowlevel
import pytest
import redis

from cache.redis import RedisTier
from harness.servers import RedisServer
from tests.cache.conftest import PATIENCE, DictTier

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["Redis", "dictionary"])
async def any_tier(request: pytest.FixtureRequest, tier: RedisTier) -> AsyncIterator[RedisTier]:
    chosen = tier if request.param == "Redis" else DictTier()
    yield chosen
    await chosen.close()


async def test_what_was_never_put_is_not_there(any_tier: RedisTier) -> None:
    assert await any_tier.get_many([b"a", b"b"]) == [None, None]


async def test_values_come_in_the_order_of_the_keys(any_tier: RedisTier) -> None:
    await any_tier.put_many({b"a": b"1", b"b": b"2"})
    assert await any_tier.get_many([b"b", b"nowhere", b"a", b"b"]) == [b"2", None, b"1", b"2"]


async def test_no_keys_get_no_values(any_tier: RedisTier) -> None:
    await any_tier.put_many({})
    assert await any_tier.get_many([]) == []


@pytest.mark.parametrize("value", [b"", b"\x00\r\n$-1\r\n", bytes(range(256)), b"x" * 100_000])
async def test_any_bytes_come_back_as_they_were(any_tier: RedisTier, value: bytes) -> None:
    await any_tier.put_many({b"\x00\r\n\xff": value})
    assert await any_tier.get_many([b"\x00\r\n\xff"]) == [value]


async def test_later_value_takes_the_place_of_the_earlier(any_tier: RedisTier) -> None:
    await any_tier.put_many({b"a": b"1"})
    await any_tier.put_many({b"a": b"2"})
    assert await any_tier.get_many([b"a"]) == [b"2"]


async def test_value_is_forgotten_after_its_time(shared_server: RedisServer, raw: redis.Redis) -> None:
    tier = RedisTier(shared_server.url, ttl_seconds=0.05, timeout=PATIENCE)
    await tier.put_many({b"a": b"1"})
    with anyio.fail_after(5):
        while await tier.get_many([b"a"]) != [None]:
            await anyio.lowlevel.checkpoint()
    await tier.close()


async def test_closed_tier_can_be_used_again(any_tier: RedisTier) -> None:
    await any_tier.put_many({b"a": b"1"})
    await any_tier.close()
    await any_tier.close()
    await any_tier.put_many({b"b": b"2"})
    assert await any_tier.get_many([b"b"]) == [b"2"]
