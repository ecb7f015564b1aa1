"""Repeated work of a worker must not retain memory; the detector finds a leak that a test adds."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count, islice
from pathlib import Path

import pytest

from serving.events.follow import Hub
from serving.events.sqlite import SQLiteEventLog
from serving.jobs.attempt import Attempt, JobFailed, Report
from serving.jobs.job import Job, JobRequest
from serving.jobs.sqlite import SQLiteJobStore, jobs_database
from serving.shared.book import Book
from serving.shared.metrics import Metrics
from serving.shared.pressure import Pressure, Trimmer
from tests.serving.predict.letters import Letters

pytestmark = pytest.mark.anyio

WARM_UP, ROUNDS, CYCLES = 30, 3, 100
ALLOWED_BYTES = 100
"""A cycle, on average: less than the smallest thing that anybody would forget, a dictionary or a task."""

Cycle = Callable[[int], Awaitable[None]]


async def leaked(cycle: Cycle) -> float:
    """Bytes that a cycle keeps, once all is warm: in the best of ROUNDS, since a leak is in each of them.

    What is allocated once, a larger table or a buffer, is in one round only, whenever it comes.
    """
    numbers = count()
    for number in islice(numbers, WARM_UP):
        await cycle(number)
    kept: list[int] = []
    tracemalloc.start()
    try:
        for _ in range(ROUNDS):
            gc.collect()
            before, _peak = tracemalloc.get_traced_memory()
            for number in islice(numbers, CYCLES):
                await cycle(number)
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    return min(kept) / CYCLES


async def test_the_detector_finds_a_leak() -> None:
    kept: list[object] = []

    async def cycle(number: int) -> None:
        kept.append({"number": number})

    assert await leaked(cycle) > ALLOWED_BYTES


@pytest.fixture
async def letters(models: Path) -> Letters:
    letters = Letters(models, max_items=20)
    letters.batcher.asked = deque(maxlen=1)
    return letters


async def test_requests_leave_no_more_than_the_cache_may_keep(letters: Letters) -> None:
    async def cycle(number: int) -> None:
        rows = "".join(chr(1000 + number * 7 + index) for index in range(10))
        await asyncio.gather(letters.ask(rows), letters.ask(rows[5:]))

    assert await leaked(cycle) < ALLOWED_BYTES


async def test_requests_that_fail_or_are_given_up_leave_nothing(letters: Letters) -> None:
    async def cycle(number: int) -> None:
        letters.batcher.error = RuntimeError("as planned")
        letters.batcher.gate.clear()
        waiting, failing = letters.start(chr(1000 + number)), letters.start("ab")
        await asyncio.sleep(0)
        waiting.cancel()
        letters.batcher.gate.set()
        await asyncio.gather(waiting, failing, return_exceptions=True)

    assert await leaked(cycle) < ALLOWED_BYTES


async def test_streams_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    events = SQLiteEventLog(jobs_database(tmp_path), poll_seconds=0.001, max_events=50)
    hub = Hub(events)

    async def cycle(number: int) -> None:
        async with hub.subscribe(f"topic-{number}", after=0, address=f"10.0.0.{number}") as stream:
            await events.append(f"topic-{number}", "tick", b"{}")
            assert (await anext(aiter(stream))).kind == "tick"

    kept = await leaked(cycle)
    hub.close()
    await events.close()
    assert kept < ALLOWED_BYTES


async def test_jobs_that_are_done_or_fail_leave_nothing(tmp_path: Path) -> None:
    store = SQLiteJobStore(tmp_path)

    async def handler(_job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        report(0.5)
        if chunk == 1 and data == b"bad":
            raise JobFailed("as planned")
        return data

    async def cycle(number: int) -> None:
        rows = b"bad" if number % 3 == 0 else b"good"
        await store.submit(JobRequest(operation="toy", inputs=(rows, rows)))
        job = await store.claim("a", 60, ["toy"])
        assert job is not None
        outcome = await Attempt(store, job, owner="a", lease=60).run(handler, asyncio.Event())
        assert outcome == ("failed" if rows == b"bad" else "done")
        await store.prune(0, 5, 1 << 30)

    kept = await leaked(cycle)
    await store.close()
    assert kept < ALLOWED_BYTES


async def test_figures_of_any_number_of_processes_take_the_same_place() -> None:
    book = Book(2)
    metrics = Metrics(book)
    figures = metrics.model("wine", "predict")
    trimmer = Trimmer(Pressure())

    async def cycle(number: int) -> None:
        slot = book.assign()
        book.enter(slot)
        metrics.model("wine", "predict").refused(400 + number)
        figures.answered(number * 1e-4, ["miss"])
        metrics.publish()
        trimmer.heed()
        book.release(slot, "web")

    assert await leaked(cycle) < ALLOWED_BYTES
