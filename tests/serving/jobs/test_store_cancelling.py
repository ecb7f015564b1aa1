"""What every store of jobs must do when one is cancelled."""

from __future__ import annotations

import pytest

from serving.jobs.job import Counts
from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, Jobs, claim, claimed, complete, job_request

pytestmark = pytest.mark.anyio


async def test_queued_job_is_cancelled_at_once(store: JobStore) -> None:
    job = (await store.submit(job_request(mutex="x"))).job
    cancelled = await store.cancel(job.id)
    assert cancelled.state == "cancelled"
    assert cancelled.finished is not None
    assert await claim(store) is None
    assert (await store.submit(job_request(mutex="x"))).is_new


async def test_running_job_learns_that_it_is_cancelled_and_keeps_its_mutex_until_it_lets_go(store: JobStore) -> None:
    await store.submit(job_request(mutex="x"))
    job = await claimed(store)
    asked = await store.cancel(job.id)
    assert (asked.state, asked.cancelling) == ("running", True)
    assert await store.heartbeat(job.id, "a", LEASE) == "cancelled"
    assert await store.checkpoint(job.id, "a", LEASE, 0, b"") == "cancelled"
    assert not (await store.submit(job_request(mutex="x"))).is_new
    released = await store.release(job.id, "a")
    assert released is not None
    assert released.state == "cancelled"
    assert (await store.submit(job_request(mutex="x"))).is_new


async def test_cancelled_job_that_fails_is_cancelled_and_one_that_finishes_is_done(store: JobStore) -> None:
    for _ in range(2):
        await store.submit(job_request(inputs=(b"",)))
    failing, finishing = await claimed(store), await claimed(store)
    for job in (failing, finishing):
        await store.checkpoint(job.id, "a", LEASE, 0, b"")
        await store.cancel(job.id)
    failed, done = await store.fail(failing.id, "a", "why"), await store.finish(finishing.id, "a")
    assert failed is not None
    assert done is not None
    assert (failed.state, done.state) == ("cancelled", "done")


async def test_cancelled_job_whose_runner_died_is_cancelled(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request())
    job = await claimed(store, "a", 0.05)
    await store.cancel(job.id)
    jobs.let_pass(0.1)

    async def cancelled() -> bool:
        assert await claim(store, "b") is None
        return (await store.get(job.id)).state == "cancelled"

    await until(cancelled)


async def test_finished_job_is_not_cancelled(store: JobStore) -> None:
    await store.submit(job_request(inputs=(b"",)))
    await complete(store, await claimed(store))
    job = await store.get((await store.submit(job_request(idempotency_key="k"))).job.id)
    assert (await store.cancel(job.id)).state == "cancelled"
    assert (await store.cancel(job.id)).state == "cancelled"
    assert (await store.counts()) == Counts(done=1, cancelled=1)
