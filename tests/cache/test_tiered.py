"""Both tiers together; requests meet them in tests/serving/predict/test_inference.py."""

from __future__ import annotations

import pytest

from cache.memory import MemoryTier, Stats
from cache.tiered import TieredCache
from tests.cache.conftest import DictTier, turns

pytestmark = pytest.mark.anyio


@pytest.fixture
async def remote() -> DictTier:
    return DictTier()


@pytest.fixture
async def cache(remote: DictTier, patient: None) -> TieredCache:
    return make_cache(remote)


def make_cache(remote: DictTier | None) -> TieredCache:
    stats = Stats()
    return TieredCache(MemoryTier(max_items=100, max_bytes=1 << 20, ttl_seconds=60, stats=stats), remote, stats=stats)


async def test_value_found_remotely_is_then_in_memory(cache: TieredCache, remote: DictTier) -> None:
    remote.kept[b"a"] = b"A"
    assert cache.find([b"a", b"b"]) == [None, None]
    assert await cache.find_remotely([b"a", b"b"]) == {b"a": (b"A", "hit-redis")}
    assert cache.find([b"a", b"b"]) == [b"A", None]
    assert remote.lookups == [[b"a", b"b"]]


async def test_value_is_in_memory_at_once_and_remote_soon(cache: TieredCache, remote: DictTier) -> None:
    remote.gate.clear()
    cache.keep({b"a": b"A"})
    assert cache.find([b"a"]) == [b"A"]
    await turns()
    assert (remote.writes, remote.kept) == ([{b"a": b"A"}], {})
    remote.gate.set()
    await cache.close()
    assert remote.kept == {b"a": b"A"}


async def test_each_source_is_counted(cache: TieredCache) -> None:
    cache.count([(b"A", "miss")])
    cache.count([(b"A", "hit-memory"), (b"B", "hit-redis"), (b"C", "miss"), (b"C", "coalesced")])
    stats = cache.stats
    assert (stats.hits_memory, stats.hits_redis, stats.misses, stats.coalesced) == (1, 1, 2, 1)


async def test_memory_alone_finds_nothing_remotely() -> None:
    cache = make_cache(None)
    cache.keep({b"a": b"A"})
    assert (cache.find([b"a"]), await cache.find_remotely([b"b"])) == ([b"A"], {})
    assert (cache.is_local, cache.redis_state) == (True, "disabled")
    await cache.close()


async def test_closing_closes_the_remote(cache: TieredCache, remote: DictTier) -> None:
    cache.keep({b"a": b"A"})
    await cache.close()
    assert remote.closed
    assert cache.stats.items == 0
