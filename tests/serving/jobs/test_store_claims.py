"""What every store of jobs must do with claims, leases and attempts."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from serving.jobs.job import Backoff
from serving.jobs.store import JobStore, results
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, Jobs, claim, claimed, complete, job_request

pytestmark = pytest.mark.anyio


async def test_jobs_are_claimed_in_the_order_in_which_they_are_due(store: JobStore, jobs: Jobs) -> None:
    late = (await store.submit(job_request(delay=0.02))).job
    jobs.let_pass(0.001)
    soon = [(await store.submit(job_request(operation=operation))).job for operation in ("explain", "predict") * 2]
    jobs.let_pass(0.02)
    # Redis has its own clock: on a busy machine the late one may have its turn before the last of the others
    in_turn = sorted([*soon, late], key=lambda job: job.due)
    assert [(await until(lambda: claim(store))).id for _ in in_turn] == [job.id for job in in_turn]
    assert await claim(store) is None


async def test_job_that_is_not_yet_due_is_not_claimed(store: JobStore) -> None:
    await store.submit(job_request(delay=3600))
    assert await claim(store) is None


async def test_only_operations_that_were_asked_for_are_claimed(store: JobStore) -> None:
    await store.submit(job_request(operation="explain"))
    assert await store.claim("a", LEASE, ["train", "predict"]) is None
    assert await store.claim("a", LEASE, []) is None
    assert await store.claim("a", LEASE, ["train", "explain"]) is not None


async def test_claims_at_once_never_give_one_job_twice(jobs: Jobs) -> None:
    stores = [jobs.open() for _ in range(4)]
    submitted = {(await stores[0].submit(job_request())).job.id for _ in range(20)}
    got = await asyncio.gather(*[claim(store, str(n)) for n in range(10) for store in stores])
    assert sorted(job.id for job in got if job is not None) == sorted(submitted)


async def test_leased_job_is_claimed_by_nobody_else(store: JobStore) -> None:
    await store.submit(job_request())
    await claimed(store, "a")
    assert await claim(store, "b") is None


async def test_job_whose_lease_has_run_out_is_gone_on_with_by_another(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request())
    job = await claimed(store, "a")
    assert await store.checkpoint(job.id, "a", 0.01, 1, b"by a") == "held"
    jobs.let_pass(0.02)
    again = await until(lambda: claim(store, "b"))
    assert (again.id, again.owner, again.attempts) == (job.id, "b", 2)
    assert again.error == "lost with its runner a"
    assert again.started == job.started
    assert await store.missing(job.id) == [0, 2]
    await complete(store, again, "b")
    done = await store.get(job.id)
    assert (done.state, done.error) == ("done", "")
    assert [result async for result in results(store, done)] == [b"result 0", b"by a", b"result 2"]


async def test_stale_owner_is_refused_everything(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request())
    job = await claimed(store, "a", 0.01)
    jobs.let_pass(0.02)
    await until(lambda: claim(store, "b"))
    before = await store.get(job.id)
    assert await store.heartbeat(job.id, "a", LEASE, 0.9) == "lost"
    assert await store.checkpoint(job.id, "a", LEASE, 0, b"stale") == "lost"
    assert await store.finish(job.id, "a") is None
    assert await store.fail(job.id, "a", "stale", permanent=True) is None
    assert await store.release(job.id, "a") is None
    assert await store.get(job.id) == before
    assert await store.result(job.id, 0) is None


async def test_heartbeat_extends_the_lease(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request())
    await store.submit(job_request())
    first = await claimed(store, "a", 0.05)
    assert await store.heartbeat(first.id, "a", LEASE) == "held"
    second = await claimed(store, "a", 0.05)
    jobs.let_pass(0.1)
    assert (await until(lambda: claim(store, "b"))).id == second.id
    assert await claim(store, "b") is None


async def test_progress_never_goes_back(store: JobStore) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    for told, seen in [(0.5, 0.5), (0.2, 0.5), (7.0, 1.0)]:
        await store.heartbeat(job.id, "a", LEASE, told)
        assert (await store.get(job.id)).progress == seen
    await store.checkpoint(job.id, "a", LEASE, 0, b"")
    assert (await store.get(job.id)).progress == 1.0


async def test_finish_that_is_told_twice_is_told_the_same(store: JobStore) -> None:
    await store.submit(job_request(inputs=(b"",)))
    job = await claimed(store)
    await complete(store, job)
    assert await store.finish(job.id, "a") == await store.get(job.id)
    assert await store.finish(job.id, "b") is None


async def test_failed_attempt_is_tried_again_later_up_to_its_limit(jobs: Jobs) -> None:
    store = jobs.open()
    await store.submit(job_request(max_attempts=3))
    for attempt in (1, 2, 3):
        job = await until(lambda: claim(store))
        assert job.attempts == attempt
        failed = await store.fail(job.id, "a", f"reason {attempt}")
        assert failed is not None
        assert (failed.state, failed.error) == ("failed" if attempt == 3 else "queued", f"reason {attempt}")
        jobs.let_pass(1)
    assert await claim(store) is None
    assert (await store.get(job.id)).finished is not None


@pytest.mark.parametrize(("stalled", "low", "high"), [(1, 500, 1000), (2, 1000, 2000), (4, 1500, 3000)])
async def test_attempts_are_further_and_further_apart(jobs: Jobs, stalled: int, low: float, high: float) -> None:
    store = jobs.open(backoff=Backoff(first=1000.0, longest=3000.0))
    job = (await store.submit(job_request(max_attempts=10))).job
    for _ in range(stalled - 1):
        await until(lambda: claim(store, "dies", 0.001))
        jobs.let_pass(0.01)
    await until(lambda: claim(store))
    failed = await store.fail(job.id, "a", "why")
    assert failed is not None
    assert failed.stalled == stalled
    assert low <= failed.due - job.due <= high + 60
    assert await claim(store) is None


async def test_permanent_failure_is_not_tried_again(store: JobStore) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    failed = await store.fail(job.id, "a", "wrong input \ud800", permanent=True)
    assert failed is not None
    assert (failed.state, failed.error, failed.attempts) == ("failed", "wrong input ?", 1)
    assert len((await store.get(job.id)).error) < 3000


async def test_long_error_is_cut(store: JobStore) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    failed = await store.fail(job.id, "a", "x" * 100_000, permanent=True)
    assert failed is not None
    assert len(failed.error) == 2000


async def test_job_that_kills_its_runners_fails_at_last(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request(max_attempts=2))
    for owner in ("a", "b"):
        job = await until(partial(claim, store, owner, 0.01))
        jobs.let_pass(0.02)

    async def failed() -> bool:
        assert await claim(store, "c") is None
        return (await store.get(job.id)).state == "failed"

    await until(failed)
    assert (await store.get(job.id)).error == "lost with its runner b"


async def test_job_that_gets_on_is_not_given_up(store: JobStore, jobs: Jobs) -> None:
    await store.submit(job_request(max_attempts=2))
    for chunk in range(3):
        job = await until(partial(claim, store, str(chunk)))
        assert await store.checkpoint(job.id, str(chunk), 0.01, chunk, b"") == "held"
        jobs.let_pass(0.02)
    job = await until(partial(claim, store, "last"))
    assert job.attempts == 4
    assert await store.finish(job.id, "last") is not None


async def test_released_job_is_claimable_at_once_and_the_attempt_does_not_count(store: JobStore) -> None:
    await store.submit(job_request(max_attempts=1))
    for _ in range(5):
        job = await claimed(store)
        released = await store.release(job.id, "a")
        assert released is not None
        assert (released.state, released.stalled) == ("queued", 0)
    assert await store.heartbeat(job.id, "a", LEASE) == "lost"
