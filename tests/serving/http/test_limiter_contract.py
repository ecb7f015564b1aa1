"""What every limiter does: in the memory of a box, and shared through a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis

from harness.servers import RedisServer
from serving.http.rate_limit import Limiter
from serving.shared.rate_table import Rate, RateTable

pytestmark = pytest.mark.anyio

HOUR = 3600.0
PATIENCE = 5.0


@pytest.fixture(params=["memory", "redis"])
async def slow(request: pytest.FixtureRequest) -> AsyncIterator[Limiter]:
    """Five at once, then one every twelve minutes: nothing comes back while a test runs."""
    table = RateTable(Rate(5, HOUR, 5), buckets=64)
    if request.param == "memory":
        yield Limiter(table)
        return
    server: RedisServer = request.getfixturevalue("shared_server")
    request.getfixturevalue("raw")
    limiter = Limiter(table, server.url, patience=PATIENCE)
    yield limiter
    await limiter.close()


async def test_a_burst_is_allowed_and_not_one_request_more(slow: Limiter) -> None:
    verdicts = [await slow.take(b"aaaa") for _ in range(7)]
    assert [verdict.allowed for verdict in verdicts] == [True] * 5 + [False] * 2
    assert [round(verdict.debt / 720) for verdict in verdicts] == [1, 2, 3, 4, 5, 5, 5]


async def test_clients_do_not_pay_for_each_other(slow: Limiter) -> None:
    for _ in range(7):
        await slow.take(b"aaaa")
    assert (await slow.take(b"aaab")).allowed
    assert (await slow.take(b"")).allowed


async def test_what_is_refused_is_not_charged() -> None:
    clock = [100.0]
    table = RateTable(Rate(10, 1.0, 2), clock=lambda: clock[0])
    for _ in range(1000):
        table.count(b"aaaa")
    clock[0] += 0.101
    assert [table.count(b"aaaa").allowed for _ in range(2)] == [True, False]
    clock[0] += 1000
    assert [table.count(b"aaaa").allowed for _ in range(3)] == [True, True, False]


async def test_redis_gives_back_with_its_own_clock(shared_server: RedisServer, raw: redis.Redis) -> None:
    limiter = Limiter(RateTable(Rate(1, 30.0, 1)), shared_server.url, patience=PATIENCE)
    assert (await limiter.take(b"aaaa")).allowed
    other = Limiter(RateTable(Rate(1, 30.0, 1)), shared_server.url, patience=PATIENCE)
    refused = await other.take(b"aaaa")
    await other.close()
    assert not refused.allowed
    assert 0 < refused.debt <= 30.0
    # whoever owes nothing is not kept
    assert 0 < raw.pttl("forkserve:limit:61616161") <= 30_000
    await limiter.close()


async def test_boxes_share_what_redis_counts(shared_server: RedisServer, raw: redis.Redis) -> None:
    boxes = [Limiter(RateTable(Rate(5, HOUR, 5)), shared_server.url, patience=PATIENCE) for _ in range(3)]
    verdicts = await asyncio.gather(*(boxes[number % 3].take(b"aaaa") for number in range(9)))
    assert sum(verdict.allowed for verdict in verdicts) == 5
    for box in boxes:
        await box.close()


AN_HOUR_AHEAD = pytest.param(f"{(time.time() + HOUR) * 1e6:.0f}".encode(), id="an hour ahead")


@pytest.mark.parametrize("planted", [b"x", b"9" * 300, b"-1", b"nan", b"inf", AN_HOUR_AHEAD])
async def test_nonsense_in_redis_and_a_clock_that_ran_ahead_lock_nobody_out(
    shared_server: RedisServer, raw: redis.Redis, planted: bytes
) -> None:
    raw.set("forkserve:limit:61616161", planted)
    limiter = Limiter(RateTable(Rate(5, 1.0, 5)), shared_server.url, patience=PATIENCE)
    verdict = await limiter.take(b"aaaa")
    assert verdict.allowed
    assert verdict.debt <= 1.0
    raw.delete("forkserve:limit:61616161")
    raw.rpush("forkserve:limit:61616161", "of another type")
    assert (await limiter.take(b"aaaa")).allowed, "then this box decides"
    await limiter.close()


async def test_without_redis_the_box_decides_and_soon_without_asking(own_server: RedisServer) -> None:
    limiter = Limiter(RateTable(Rate(5, HOUR, 5)), own_server.url)
    assert (await limiter.take(b"aaaa")).allowed
    own_server.pause()
    loop = asyncio.get_running_loop()
    seconds = []
    for number in range(20):
        started = loop.time()
        assert (await limiter.take(number.to_bytes(4))).allowed
        seconds.append(loop.time() - started)
    assert sum(second > 0.01 for second in seconds) <= 10, "the breaker has opened"
    assert [(await limiter.take(b"aaaa")).allowed for _ in range(5)] == [True] * 4 + [False], "it has counted along"
    own_server.resume()
    await limiter.close()


async def test_a_flood_does_not_reach_redis(shared_server: RedisServer, raw: redis.Redis) -> None:
    limiter = Limiter(RateTable(Rate(5, HOUR, 5)), shared_server.url, patience=PATIENCE)
    before = _calls(raw)
    for _ in range(200):
        await limiter.take(b"aaaa")
    assert _calls(raw) - before <= 6
    await limiter.close()


def _calls(raw: redis.Redis) -> int:
    statistics = raw.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))
