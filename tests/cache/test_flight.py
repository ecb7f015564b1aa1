"""Single flight: equal keys in flight are made once, and nobody is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from cache.flight import Answer, Flight, Flights
from tests.cache.conftest import turns

pytestmark = pytest.mark.anyio


class Kitchen:
    """Makes answers when its gate is open, and remembers for whom."""

    def __init__(self) -> None:
        self.orders: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def make(self, keys: list[bytes]) -> Mapping[bytes, Answer]:
        self.orders.append(keys)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {key: (key.upper(), "miss") for key in keys}


@pytest.fixture
async def kitchen() -> Kitchen:
    return Kitchen()


async def share(flights: Flights, keys: list[bytes], kitchen: Kitchen) -> dict[bytes, Answer]:
    """Join flights as inference does."""
    answers: dict[bytes, Answer] = {}
    missing = keys
    while missing:
        with Flight(flights, missing) as flight:
            if flight.led:
                flight.answers = await kitchen.make(flight.led)
        answers.update(flight.answers)
        missing = await flight.follow(answers) if flight.followed else []
    return answers


async def start(flights: Flights, kitchen: Kitchen, *wishes: list[bytes]) -> list[asyncio.Task[dict[bytes, Answer]]]:
    tasks = []
    for keys in wishes:
        tasks.append(asyncio.create_task(share(flights, keys, kitchen)))
        await turns()
    return tasks


async def test_equal_keys_in_flight_are_made_once(kitchen: Kitchen) -> None:
    first, *others = await start({}, kitchen, *[[b"a"]] * 100)
    kitchen.gate.set()
    assert await first == {b"a": (b"A", "miss")}
    assert await asyncio.gather(*others) == [{b"a": (b"A", "coalesced")}] * 99
    assert kitchen.orders == [[b"a"]]


async def test_batch_makes_only_what_nobody_else_is_making(kitchen: Kitchen) -> None:
    tasks = await start({}, kitchen, [b"a", b"b"], [b"b", b"c"], [b"c", b"a", b"d"])
    kitchen.gate.set()
    assert await asyncio.gather(*tasks) == [
        {b"a": (b"A", "miss"), b"b": (b"B", "miss")},
        {b"b": (b"B", "coalesced"), b"c": (b"C", "miss")},
        {b"c": (b"C", "coalesced"), b"a": (b"A", "coalesced"), b"d": (b"D", "miss")},
    ]
    assert kitchen.orders == [[b"a", b"b"], [b"c"], [b"d"]]


async def test_after_the_landing_the_key_is_made_again(kitchen: Kitchen) -> None:
    kitchen.gate.set()
    flights: Flights = {}
    assert await share(flights, [b"a"], kitchen) == await share(flights, [b"a"], kitchen)
    assert len(kitchen.orders) == 2


async def test_followers_of_a_failed_leader_get_its_error(kitchen: Kitchen) -> None:
    flights: Flights = {}
    tasks = await start(flights, kitchen, [b"a"], [b"a"], [b"a"])
    kitchen.error = KeyError("the model broke")
    kitchen.gate.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [kitchen.error] * 3
    assert kitchen.orders == [[b"a"]]
    kitchen.error = None
    assert await share(flights, [b"a"], kitchen) == {b"a": (b"A", "miss")}


async def test_follower_of_a_cancelled_leader_takes_over(kitchen: Kitchen) -> None:
    leader, *followers = await start({}, kitchen, [b"a"], [b"a"], [b"a"], [b"a"])
    leader.cancel()
    await turns()
    assert leader.cancelled()
    assert kitchen.orders == [[b"a"], [b"a"]], "one takes over, the others follow it"
    kitchen.gate.set()
    sources = [answers[b"a"][1] for answers in await asyncio.gather(*followers)]
    assert sorted(sources) == ["coalesced", "coalesced", "miss"]


async def test_every_leader_may_be_cancelled_in_turn(kitchen: Kitchen) -> None:
    tasks = await start({}, kitchen, *[[b"a", b"b"]] * 10)
    *leaders, last = tasks
    for count, leader in enumerate(leaders, start=1):
        leader.cancel()
        await turns()
        assert len(kitchen.orders) == count + 1, "the next in line leads, once"
    kitchen.gate.set()
    assert await last == {b"a": (b"A", "miss"), b"b": (b"B", "miss")}


async def test_cancelled_follower_disturbs_nobody(kitchen: Kitchen) -> None:
    leader, follower, other = await start({}, kitchen, [b"a"], [b"a"], [b"a"])
    follower.cancel()
    await turns()
    assert follower.cancelled()
    kitchen.gate.set()
    assert (await leader, await other) == ({b"a": (b"A", "miss")}, {b"a": (b"A", "coalesced")})


async def test_callers_who_want_what_the_other_makes_do_not_wait_for_ever(kitchen: Kitchen) -> None:
    flights: Flights = {}
    one, two = await start(flights, kitchen, [b"a"], [b"b"])
    three, four = await start(flights, kitchen, [b"a", b"b", b"c"], [b"c", b"d", b"a"])
    one.cancel()
    two.cancel()
    await turns()
    kitchen.gate.set()
    async with asyncio.timeout(5):
        assert set(await three) == {b"a", b"b", b"c"}
        assert set(await four) == {b"c", b"d", b"a"}


async def test_failure_that_nobody_follows_leaves_no_complaint(kitchen: Kitchen) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    kitchen.error = ValueError("bad")
    kitchen.gate.set()
    flights: Flights = {}
    for _ in range(3):
        with pytest.raises(ValueError, match="bad"):
            await share(flights, [b"a"], kitchen)
    (cancelled,) = await start(flights, Kitchen(), [b"a"])
    cancelled.cancel()
    await turns()
    gc.collect()
    await turns()
    assert complaints == []


async def test_storm_of_cancellations_leaves_nothing_in_flight() -> None:
    flights: Flights = {}
    alphabet = [bytes([65 + number]) for number in range(6)]

    class SlowKitchen(Kitchen):
        async def make(self, keys: list[bytes]) -> Mapping[bytes, Answer]:
            await turns(len(keys))
            return {key: (key, "miss") for key in keys}

    for round_ in range(100):
        tasks = [
            asyncio.create_task(share(flights, [alphabet[(start + step) % 6] for step in range(3)], SlowKitchen()))
            for start in range(12)
        ]
        for number, task in enumerate(tasks):
            if (number + round_) % 3 == 0:
                await turns(round_ % 4)
                task.cancel()
        async with asyncio.timeout(10):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, dict) for result in results) >= 8
    assert flights == {}
