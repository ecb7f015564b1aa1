"""Results that are shared by all who ask within some seconds."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import StoreUnavailable
from serving.storage.background import Recent, StoreHealth, watch_store

pytestmark = pytest.mark.anyio


class Counter:
    """Counts how often it is asked; an answer takes a turn of the event loop."""

    def __init__(self, *failures: Exception) -> None:
        self.asked = 0
        self.failures = list(failures)

    async def ask(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        return self.asked


async def test_concurrent_callers_share_one_result() -> None:
    counter = Counter()
    recent = Recent(counter.ask, 60.0)
    assert await asyncio.gather(*(recent.get() for _ in range(5))) == [1] * 5


async def test_an_old_result_is_computed_again() -> None:
    counter = Counter()
    recent = Recent(counter.ask, -1.0)
    assert [await recent.get(), await recent.get()] == [1, 2]


async def test_a_failure_is_not_remembered() -> None:
    counter = Counter(StoreUnavailable("gone"))
    recent = Recent(counter.ask, 60.0)
    with pytest.raises(StoreUnavailable):
        await recent.get()
    assert await recent.get() == 2


async def test_a_store_is_probed_once_for_all_who_ask_for_its_state() -> None:
    well, ill = Counter(), Counter(StoreUnavailable("gone"))
    for counter, health in ((well, StoreHealth("ok")), (ill, StoreHealth("unavailable", "gone"))):
        watch = watch_store(counter.ask)
        assert set(await asyncio.gather(watch.get(), watch.get())) == {health}
        assert counter.asked == 1


def test_a_store_that_may_lose_what_it_keeps_is_well_and_says_so() -> None:
    async def probe() -> None: ...

    async def risk() -> str:
        return "it may evict"

    assert asyncio.run(watch_store(probe, risk).get()) == StoreHealth("ok", "it may evict")
