"""Measures the gain of the cache over HTTP: `python -m bench.cached`.

A forest by its estimator, compiled, from memory and from Redis; batches of which nine rows in ten are known; and Redis
stopped with SIGSTOP under a steady load, second by second. wrk must be on PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import uvloop

from bench import wrk
from bench.models import add_support_vectors
from bench.pace import Answered, Pace, quantile
from bench.predict import CONNECTIONS, ours, shot
from bench.table import Table
from bench.wrk import Load, Shot
from harness.servers import RedisServer, redis_server
from harness.service import Service, demo_models

FOREST = "breast-cancer"
STOP, CONTINUE, END = 3, 8, 20
RATE = 500


def compare_hits(models: Path, seconds: float) -> Table:
    """Compare the sources of answers, at 64 connections and at one; hits are rows that were requested before."""
    new = shot(models, FOREST)
    known = Shot(new.path, new.body, new.low, new.high, unique=500)
    table = Table("answer from", "requests/s", "p50 ms", "1 connection/s", "p50 ms", "lost")

    def measure(who: str, service: Service, target: Shot) -> None:
        wrk.run(service.address, target, connections=CONNECTIONS, seconds=1)
        loads = [
            # another seed makes other rows
            wrk.run(service.address, target, connections=count, seconds=seconds, seed=100_000 * count * (target is new))
            for count in (CONNECTIONS, 1)
        ]
        table.add(who, *cells(loads[0]), *cells(loads[1]), sum(load.refused + load.lost for load in loads))

    with ours(models, COMPILE="false") as service:
        measure("estimator", service, new)
    with ours(models) as service:
        measure("compiled model", service, new)
        measure("memory", service, known)
    with redis_server() as redis, ours(models, REDIS_URL=redis.url, CACHE_MAX_ITEMS="0") as service:
        measure("Redis", service, known)
        measure("compiled, Redis asked in vain", service, new)
    return table


def cells(load: Load) -> tuple[str, str]:
    """Rate and median."""
    return f"{load.rate:.0f}", f"{load.p50 * 1e3:.2f}"


def batch_seconds(service: Service, model: str, rows: list[dict[str, Any]]) -> float:
    """Measure a request of many rows."""
    body = json.dumps({"instances": rows}).encode()
    request = urllib.request.Request(
        f"{service.address}/v1/models/{model}:predict", body, {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    urllib.request.urlopen(request, timeout=60).close()
    return time.perf_counter() - started


def compare_batches(models: Path) -> Table:
    """1,000 rows by the estimator, none and nine in ten of them known; the median of nine requests each."""
    table = Table("1,000 rows", "all new, ms", "90 % known, ms", "x")
    with ours(models, COMPILE="false", WEB_CONCURRENCY="1", CACHE_MAX_ITEMS="100000") as service:
        for model in (FOREST, "support-vectors"):
            manifest = json.loads((models / model / "1/manifest.json").read_text())
            name, (low, high) = manifest["features"][0]["name"], manifest["features"][0]["seen"]

            def rows(start: int, count: int) -> list[dict[str, Any]]:
                values = (low + (high - low) * (start + index) * 1e-7 for index in range(count))  # noqa: B023
                return [manifest["example"] | {name: value} for value in values]  # noqa: B023

            known = rows(0, 900)
            batch_seconds(service, model, known)
            new = sorted(batch_seconds(service, model, rows(10_000 * turn, 1000)) for turn in range(1, 10))[4]
            mixed = [known + rows(1_000_000 + 1000 * turn, 100) for turn in range(9)]
            some = sorted(batch_seconds(service, model, batch) for batch in mixed)[4]
            table.add(model, f"{new * 1e3:.1f}", f"{some * 1e3:.1f}", f"{new / some:.1f}")
    return table


def stop_redis(models: Path) -> Table:
    """A steady load on one worker; Redis hangs for five seconds."""
    table = Table("second", "Redis", "requests", "p50 ms", "p99 ms", "max ms", "not 200")
    with (
        redis_server() as redis,
        ours(models, REDIS_URL=redis.url, WEB_CONCURRENCY="1", CACHE_MAX_ITEMS="0") as service,
    ):
        answered = uvloop.run(under_load(service, models, redis))
    for second in range(END):
        these = [one for one in answered if int(one.due) == second]
        seconds = [one.seconds for one in these]
        table.add(
            second,
            "hangs" if STOP <= second < CONTINUE else "well",
            len(these),
            *(f"{quantile(seconds, share):.1f}" for share in (0.5, 0.99, 1)),
            sum(one.status != 200 for one in these),
        )
    return table


async def under_load(service: Service, models: Path, redis: RedisServer) -> list[Answered]:
    """Requests at their own pace, while Redis stops and goes on."""
    loop = asyncio.get_running_loop()
    target = shot(models, FOREST)
    await Pace(service.address).run(target.messages(service.address, start=1_000_000), RATE, 1)
    loop.call_later(STOP, redis.pause)
    loop.call_later(CONTINUE, redis.resume)
    return await Pace(service.address).run(target.messages(service.address), RATE, END)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=4, help="of each load")
    options = arguments.parse_args()
    with demo_models() as models:
        add_support_vectors(models)
        for table in (compare_hits(models, options.seconds), compare_batches(models), stop_redis(models)):
            print(table, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
