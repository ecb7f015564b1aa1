"""An attempt at a job of which several chunks are worked on at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.jobs.attempt import Attempt, AttemptOutcome, Handler, JobFailed, Report
from serving.jobs.job import Job
from serving.jobs.results import whole_result
from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, claimed, job_request

pytestmark = pytest.mark.anyio

INPUTS = [b"%d" % number for number in range(9)]


class Crowd:
    """A handler that lets nobody go before as many are there as are expected."""

    def __init__(self, size: int) -> None:
        self._barrier = asyncio.Barrier(size)
        self.inside = self.most = 0
        self.seen: list[int] = []

    async def __call__(self, _job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        self.seen.append(chunk)
        self.inside += 1
        self.most = max(self.most, self.inside)
        report(0.5)
        try:
            await self._barrier.wait()
        finally:
            self.inside -= 1
        return data * 2


async def attempt(store: JobStore, directory: Path, handler: Handler, at_once: int) -> tuple[Job, AttemptOutcome]:
    """The job of nine chunks after one attempt."""
    await store.submit(job_request(inputs=INPUTS))
    job = await claimed(store)
    one = Attempt(store, job, owner="a", lease=LEASE, chunks_at_once=at_once)
    outcome = await one.run(handler, asyncio.Event())
    return await store.get(job.id), outcome


async def test_so_many_chunks_are_in_flight_and_each_is_done_once(store: JobStore, tmp_path: Path) -> None:
    crowd = Crowd(3)
    job, outcome = await attempt(store, tmp_path, crowd, 3)
    assert (outcome, job.chunks_done, crowd.most) == ("done", 9, 3)
    assert sorted(crowd.seen) == list(range(9))
    assert [result async for result in whole_result(store, job)] == [data * 2 for data in INPUTS]


async def test_one_at_a_time_is_the_rule(store: JobStore, tmp_path: Path) -> None:
    crowd = Crowd(1)
    _, outcome = await attempt(store, tmp_path, crowd, 1)
    assert (outcome, crowd.most, crowd.seen) == ("done", 1, list(range(9)))


async def test_a_chunk_that_fails_stops_those_beside_it_and_keeps_what_is_done(store: JobStore, tmp_path: Path) -> None:
    crowd = Crowd(4)

    async def handler(job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        if chunk == 0:
            return data
        if chunk == 4:
            raise JobFailed("the model failed on instance 4")
        return await crowd(job, chunk, data, report)

    job, outcome = await attempt(store, tmp_path, handler, 4)
    assert (outcome, job.state, job.error) == ("failed", "failed", "the model failed on instance 4")
    assert (job.chunks_done, crowd.inside) == (1, 0)


async def test_progress_counts_the_shares_of_all_that_are_in_flight(store: JobStore, tmp_path: Path) -> None:
    told, seen = asyncio.Event(), 0.0

    async def handler(job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        nonlocal seen
        if chunk < 3:
            report(0.9)
            await told.wait()
        elif chunk == 8:
            seen = await until(lambda: _progress(store, job.id, 5))
            told.set()
        return data

    job, outcome = await attempt(store, tmp_path, handler, 4)
    assert seen == pytest.approx((5 + 3 * 0.9) / 9, abs=1e-6)
    assert (outcome, job.progress) == ("done", 1.0)


async def _progress(store: JobStore, job_id: str, chunks: int) -> float | None:
    """Of the job, once a heartbeat has told more than that so many chunks are done."""
    job = await store.get(job_id)
    return job.progress if job.chunks_done == chunks and job.progress > (chunks + 2) / job.chunks else None
