"""Calls in processes of their own beside calls on threads, and their memory: `python -m bench.executor`.

A worker with an array of as many MB as are given forks a zygote, as a worker with models would. Milliseconds are
medians; the time to replace is from the deadline of a call that spins to the answer of the next one. Private memory is
what one process more costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter

from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)

import numpy as np  # noqa: E402 - numpy counts the threads it may have when it is imported
import uvloop  # noqa: E402

from bench.table import Table  # noqa: E402
from serving.errors import DeadlineExceeded  # noqa: E402
from serving.process.executor import Executor  # noqa: E402
from serving.process.kernel import child_pids, read_memory  # noqa: E402
from serving.telemetry import logs  # noqa: E402

MB = 1024 * 1024
DEADLINE = 0.05
SIZES = (1, 64, 1000)
FEATURES = 30


def echo(payload: bytes) -> bytes:
    return payload


def spin(_payload: bytes) -> bytes:
    while True:
        pass


async def milliseconds(call: Callable[[], Awaitable[object]], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = perf_counter()
        await call()
        times.append(perf_counter() - started)
    return median(times) * 1e3


async def milliseconds_to_replace(executor: Executor, rounds: int) -> float:
    payload, times = bytes(8 * FEATURES), []
    for _ in range(rounds):
        started = perf_counter()
        try:
            await executor.run("spin", payload, timeout=DEADLINE)
        except DeadlineExceeded:
            await executor.run("echo", payload, timeout=10)
        times.append(perf_counter() - started - DEADLINE)
    return median(times) * 1e3


async def measure(executor: Executor, calls: int, replacements: int) -> None:
    costs = Table("rows", "thread (ms)", "process (ms)", "bytes")
    for size in SIZES:
        payload = bytes(8 * size * FEATURES)
        thread = await milliseconds(lambda payload=payload: asyncio.to_thread(echo, payload), calls)  # type: ignore[misc]
        process = await milliseconds(lambda payload=payload: executor.run("echo", payload, timeout=10), calls)  # type: ignore[misc]
        costs.add(size, f"{thread:.3f}", f"{process:.3f}", len(payload))
    print(costs)
    print(f"\nkilled and replaced in {await milliseconds_to_replace(executor, replacements):.1f} ms\n")
    memories = Table("process", "RSS (MB)", "PSS (MB)", "private (MB)")
    (zygote,) = child_pids(os.getpid())
    (child,) = child_pids(zygote)
    for name, pid in (("worker", os.getpid()), ("zygote", zygote), ("executor", child)):
        memory = read_memory(pid)
        memories.add(name, *(f"{size / MB:.1f}" for size in (memory.rss, memory.pss, memory.private)))
    print(memories)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--megabytes", type=int, default=300, help="memory of the worker")
    arguments.add_argument("--calls", type=int, default=2000)
    arguments.add_argument("--replacements", type=int, default=20)
    options = arguments.parse_args()
    logs.configure("error")
    held = np.ones(options.megabytes * MB, np.uint8)
    executor = Executor({"echo": echo, "spin": spin, "held": lambda _payload: held.tobytes()})
    executor.start()
    try:
        uvloop.run(measure(executor, options.calls, options.replacements))
    finally:
        executor.stop()


if __name__ == "__main__":
    main()
