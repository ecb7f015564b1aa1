"""Measures the cost of the cache: `python -m bench.cache` prints a table.

The last part stops Redis with SIGSTOP under a steady load and shows what it adds to a lookup, second by second.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import structlog

from cache.flight import Flight, Flights
from cache.keys import Rows, key_prefix, row_keys
from cache.memory import MemoryTier, Stats
from cache.redis import RedisTier
from cache.tiered import TieredCache
from harness.servers import RedisServer, redis_server

ITEMS = 100_000
LOOKERS = 32
"""Requests in flight at once while Redis hangs."""


def report(what: str, *microseconds: float) -> None:
    print(f"{what:<58}" + "".join(f"{value:>12,.2f}" for value in microseconds))


def per_item(run: Callable[[], object], items: int, repeats: int = 5) -> float:
    """The best of some runs, in microseconds an item."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best / items * 1e6


async def percentiles(run: Callable[[], Awaitable[object]], calls: int) -> tuple[float, float]:
    """The median and the 99th percentile of a call in microseconds."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        await run()
        times.append((time.perf_counter() - started) * 1e6)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


def random_items(count: int) -> dict[bytes, bytes]:
    return {os.urandom(24): os.urandom(100) for _ in range(count)}


def measure_memory() -> None:
    items = random_items(ITEMS)

    def fill(memory: MemoryTier) -> None:
        for key, value in items.items():
            memory.put(key, value)

    def read(memory: MemoryTier) -> None:
        for key in items:
            memory.find([key])

    roomy = MemoryTier(max_items=ITEMS, max_bytes=1 << 30, ttl_seconds=300)
    started = time.perf_counter()
    fill(roomy)
    report("memory: first put", (time.perf_counter() - started) / ITEMS * 1e6)
    report("memory: hit", per_item(lambda: read(roomy), ITEMS))
    small = MemoryTier(max_items=ITEMS // 10, max_bytes=1 << 30, ttl_seconds=300)
    report("memory: put that evicts", per_item(lambda: fill(small), ITEMS))


def measure_keys() -> None:
    prefix = key_prefix("predict", "0" * 64)

    def make_keys(rows: Rows, times: int) -> None:
        for _ in range(times):
            row_keys(prefix, rows, merge_zeros=True)

    for count in (1, 100):
        rows = np.random.default_rng(1).random((count, 30))
        spent = per_item(partial(make_keys, rows, 10_000 // count), 10_000)
        report(f"key of a row of 30 features, {count} at once", spent)


async def measure_tiers(server: RedisServer) -> None:
    items = random_items(100)
    keys = list(items)
    remote = RedisTier(server.url, ttl_seconds=300)
    cache = TieredCache(MemoryTier(max_items=1000, max_bytes=1 << 20, ttl_seconds=300), remote, stats=Stats())

    cache.keep(items)
    for count in (1, 100):
        lookup = keys[:count]
        report(f"both tiers: hit in memory, {count} rows", per_item(partial(cache.find, lookup), count))
    flights: Flights = {}

    async def miss() -> None:
        key = os.urandom(24)
        assert cache.find([key]) == [None]
        with Flight(flights, [key]):
            cache.keep({key: b"value"})

    report("both tiers: miss, flight and put, 1 row", *await percentiles(miss, 3000))
    await remote.put_many(items)
    for count in (1, 100):
        lookup = keys[:count]
        report(
            f"Redis: hit, {count} keys",
            *await percentiles(partial(remote.get_many, lookup), 2000 if count == 1 else 500),
        )
    report("Redis: put, 100 keys", *await percentiles(partial(remote.put_many, items), 200))
    await cache.close()


async def measure_hang(server: RedisServer) -> None:
    """`LOOKERS` requests, one every 5 ms each, while Redis is stopped for the seconds 1 to 4."""
    tier = RedisTier(server.url, ttl_seconds=300)
    keys = [os.urandom(24) for _ in range(8)]
    times: dict[int, list[float]] = {}
    started = time.perf_counter()

    async def look() -> None:
        while (begun := time.perf_counter()) - started < 7:
            await tier.get_many(keys)
            times.setdefault(int(begun - started), []).append((time.perf_counter() - begun) * 1e6)
            await asyncio.sleep(0.005)

    async def stop() -> None:
        await asyncio.sleep(1)
        server.pause()
        await asyncio.sleep(3)
        server.resume()

    await asyncio.gather(stop(), *[look() for _ in range(LOOKERS)])
    for second, spent in sorted(times.items()):
        state = "stopped" if 1 <= second < 4 else "well"
        report(
            f"second {second}, Redis {state}: lookup p50, p99, max",
            *statistics.quantiles(spent, n=100)[49:99:49],
            max(spent),
        )
    await tier.close()


def main() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    print(f"{'microseconds':<58}{'(p50)':>12}{'p99':>12}")
    measure_memory()
    measure_keys()
    with redis_server() as server:
        asyncio.run(measure_tiers(server))
        asyncio.run(measure_hang(server))


if __name__ == "__main__":
    main()
