"""A runner forgets what is old: finished jobs by age and number, events by age."""

from __future__ import annotations

import pytest
import structlog

from serving.errors import JobNotFound
from serving.events.log import EventLog
from serving.jobs.runner import JobLimits, Runner
from serving.jobs.store import JobStore
from serving.shared.book import Book
from serving.shared.metrics import Metrics
from tests.serving.jobs.conftest import Jobs, claimed, complete, job_request

pytestmark = pytest.mark.anyio


def runner(store: JobStore, events: EventLog, *, keep_seconds: float, keep_jobs: int) -> Runner:
    """It has nothing to do but to prune."""
    return Runner(store, events, {}, [], JobLimits(60, keep_seconds, keep_jobs, 1 << 30), metrics=Metrics(Book(1)))


async def finish(store: JobStore, jobs: Jobs) -> str:
    """A job that is done, with two events: its chunk and its end."""
    job = await store.submit(job_request(inputs=(b"",)))
    await complete(store, await claimed(store))
    jobs.let_pass(1)
    return job.id


async def test_all_but_the_last_finished_jobs_go_and_waiting_ones_stay(
    jobs: Jobs, store: JobStore, events: EventLog
) -> None:
    ids = [await finish(store, jobs) for _ in range(4)]
    waiting = (await store.submit(job_request())).id
    with structlog.testing.capture_logs() as lines:
        assert await runner(store, events, keep_seconds=3600, keep_jobs=1)._claim("me") is None
    for gone in ids[:3]:
        with pytest.raises(JobNotFound):
            await store.get(gone)
    assert (await store.get(ids[3])).state == "done"
    assert (await store.get(waiting)).state == "queued"
    assert len((await events.read(None, 0, 10)).events) == 8, "they are not old enough"
    assert [(line["jobs"], line["events"]) for line in lines] == [(3, 0)]


async def test_what_is_too_old_goes_however_little_it_is(jobs: Jobs, store: JobStore, events: EventLog) -> None:
    old = [await finish(store, jobs) for _ in range(2)]
    with structlog.testing.capture_logs() as lines:
        # what has happened in this very millisecond is not older than 0 s
        assert await runner(store, events, keep_seconds=-1, keep_jobs=100)._claim("me") is None
    for gone in old:
        with pytest.raises(JobNotFound):
            await store.get(gone)
    assert [(line["jobs"], line["events"]) for line in lines] == [(2, 4)]


async def test_a_runner_prunes_now_and_then_not_at_every_look(jobs: Jobs, store: JobStore, events: EventLog) -> None:
    pruning = runner(store, events, keep_seconds=0, keep_jobs=0)
    await pruning._claim("me")
    job = await finish(store, jobs)
    await pruning._claim("me")
    assert (await store.get(job)).state == "done"
    pruning._next_prune = 0.0
    await pruning._claim("me")
    with pytest.raises(JobNotFound):
        await store.get(job)


async def test_what_may_lose_jobs_is_logged_once(jobs: Jobs, events: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = jobs.open(), ["a", "a", None, "b", "b"]

    async def risk() -> str | None:
        return found.pop(0)

    monkeypatch.setattr(store, "risk", risk)
    pruning = runner(store, events, keep_seconds=60, keep_jobs=10)
    with structlog.testing.capture_logs() as lines:
        while found:
            pruning._next_prune = 0.0
            await pruning._claim("me")
    assert [line["reason"] for line in lines if line["event"] == "Accepted jobs may be lost"] == ["a", "b"]
