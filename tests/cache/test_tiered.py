"""Both tiers and single flight together, as requests meet them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache.memory import MemoryTier, Stats
from cache.tiered import TieredCache
from tests.cache.conftest import DictTier, turns

pytestmark = pytest.mark.anyio


class Model:
    """Answers rows named by single bytes in capitals, and remembers which were asked for."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.asked: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def compute(self, positions: list[int]) -> list[bytes]:
        self.asked.append(positions)
        await self.gate.wait()
        return [self.keys[position].upper() for position in positions]


@pytest.fixture
async def remote() -> DictTier:
    return DictTier()


@pytest.fixture
async def cache(remote: DictTier, patient: None) -> TieredCache:
    return make_cache(remote)


def make_cache(remote: DictTier | None) -> TieredCache:
    stats = Stats()
    return TieredCache(MemoryTier(max_items=100, max_bytes=1 << 20, ttl_seconds=60, stats=stats), remote, stats=stats)


async def test_each_row_says_where_it_was_found(cache: TieredCache, remote: DictTier) -> None:
    cache.keep({b"a": b"A"})
    remote.kept[b"b"] = b"B"
    keys = [b"a", b"b", b"c", b"c"]
    model = Model(keys)
    assert await cache.get_or_compute(keys, model.compute) == [
        (b"A", "hit-memory"),
        (b"B", "hit-redis"),
        (b"C", "miss"),
        (b"C", "coalesced"),
    ]
    assert model.asked == [[2]]
    stats = cache.stats
    assert (stats.hits_memory, stats.hits_redis, stats.misses, stats.coalesced) == (1, 1, 1, 1)


async def test_second_identical_row_is_answered_from_memory(cache: TieredCache, remote: DictTier) -> None:
    model = Model([b"a"])
    await cache.get_or_compute([b"a"], model.compute)
    assert await cache.get_or_compute([b"a"], model.compute) == [(b"A", "hit-memory")]
    assert (model.asked, remote.lookups) == ([[0]], [[b"a"]])


async def test_row_found_remotely_is_then_in_memory(cache: TieredCache, remote: DictTier) -> None:
    remote.kept[b"a"] = b"A"
    model = Model([b"a", b"b"])
    assert await cache.get_or_compute([b"a", b"b"], model.compute) == [(b"A", "hit-redis"), (b"B", "miss")]
    assert await cache.get_or_compute([b"a"], model.compute) == [(b"A", "hit-memory")]
    assert (remote.lookups, model.asked) == ([[b"a", b"b"]], [[1]])
    assert (cache.stats.hits_memory, cache.stats.hits_redis, cache.stats.misses) == (1, 1, 1)


async def test_batch_of_known_and_new_rows_computes_the_new_ones_at_once(cache: TieredCache, remote: DictTier) -> None:
    keys = [bytes([97 + number]) for number in range(20)]
    cache.keep({key: key.upper() for key in keys[::2]})
    model = Model(keys)
    answers = await cache.get_or_compute(keys, model.compute)
    assert [value for value, _ in answers] == [key.upper() for key in keys]
    assert model.asked == [list(range(1, 20, 2))]
    assert remote.lookups == [keys[1::2]]


async def test_equal_rows_of_concurrent_requests_are_looked_up_and_computed_once(
    cache: TieredCache, remote: DictTier
) -> None:
    model = Model([b"a"])
    remote.gate.clear()
    tasks = [asyncio.create_task(cache.get_or_compute([b"a"], model.compute)) for _ in range(50)]
    await turns()
    remote.gate.set()
    answers = [source for ((_, source),) in await asyncio.gather(*tasks)]
    assert sorted(set(answers)) == ["coalesced", "miss"]
    assert (model.asked, remote.lookups) == ([[0]], [[b"a"]])
    assert (cache.stats.misses, cache.stats.coalesced) == (1, 49)


async def test_answer_does_not_wait_for_the_remote_write(cache: TieredCache, remote: DictTier) -> None:
    async def compute(positions: list[int]) -> list[bytes]:
        remote.gate.clear()
        return [b"A"]

    async with asyncio.timeout(5):
        assert await cache.get_or_compute([b"a"], compute) == [(b"A", "miss")]
        await turns()
    assert remote.writes == [{b"a": b"A"}]
    assert remote.kept == {}
    remote.gate.set()
    await cache.close()
    assert remote.kept == {b"a": b"A"}


async def test_follower_of_a_cancelled_request_is_answered(cache: TieredCache) -> None:
    model = Model([b"a"])
    model.gate.clear()
    first, second = [asyncio.create_task(cache.get_or_compute([b"a"], model.compute)) for _ in range(2)]
    await turns()
    first.cancel()
    await turns()
    model.gate.set()
    assert await second == [(b"A", "miss")]


async def test_what_the_computation_raises_is_raised_and_not_kept(cache: TieredCache, remote: DictTier) -> None:
    async def fail(positions: list[int]) -> list[bytes]:
        raise LookupError("no such model")

    with pytest.raises(LookupError):
        await cache.get_or_compute([b"a"], fail)
    await turns()
    assert remote.writes == []
    assert await cache.get_or_compute([b"a"], Model([b"a"]).compute) == [(b"A", "miss")]


async def test_computation_must_give_one_value_a_row(cache: TieredCache) -> None:
    async def compute(positions: list[int]) -> list[bytes]:
        return [b"A"]

    with pytest.raises(ValueError, match="shorter"):
        await cache.get_or_compute([b"a", b"b"], compute)


async def test_memory_alone_works_the_same() -> None:
    cache = make_cache(None)
    model = Model([b"a", b"a"])
    assert await cache.get_or_compute([b"a", b"a"], model.compute) == [(b"A", "miss"), (b"A", "coalesced")]
    assert await cache.get_or_compute([b"a"], model.compute) == [(b"A", "hit-memory")]
    assert cache.redis_state == "disabled"
    await cache.close()


async def test_value_too_large_for_memory_is_still_answered(remote: DictTier) -> None:
    cache = TieredCache(MemoryTier(max_items=1, max_bytes=100, ttl_seconds=60), remote)
    model = Model([b"a", b"b", b"c"])
    answers = await cache.get_or_compute([b"a", b"b", b"c"], model.compute)
    assert [value for value, _ in answers] == [b"A", b"B", b"C"]


async def test_nothing_is_asked_of_anyone_for_no_rows(cache: TieredCache, remote: DictTier) -> None:
    model = Model([])
    assert await cache.get_or_compute([], model.compute) == []
    assert (model.asked, remote.lookups) == ([], [])


async def test_closing_closes_the_remote(cache: TieredCache, remote: DictTier) -> None:
    cache.keep({b"a": b"A"})
    await cache.close()
    assert remote.closed
    assert cache.stats.items == 0
