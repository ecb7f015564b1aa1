"""What every store of jobs must do with equal requests, a full queue, old jobs and the next process."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from serving.errors import JobNotFound, QueueFull
from serving.jobs.job import Counts, Job
from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import Jobs, claimed, complete, job_request

pytestmark = pytest.mark.anyio


async def test_equal_requests_are_one_job_until_it_has_ended(jobs: Jobs) -> None:
    one, two = jobs.open(), jobs.open()
    first = await one.submit(job_request(unique_key="u"))
    assert await two.submit(job_request(unique_key="u")) == dataclasses.replace(first, is_new=False)
    job = await claimed(one)
    assert (await two.submit(job_request(unique_key="u"))).job.id == job.id
    await one.fail(job.id, "a", "why", permanent=True)
    assert (await two.submit(job_request(unique_key="u"))).is_new
    assert (await two.submit(job_request(unique_key="other"))).is_new


async def test_idempotency_key_is_answered_with_the_same_job_even_when_it_has_ended(jobs: Jobs) -> None:
    one, two = jobs.open(), jobs.open()
    first = (await one.submit(job_request(inputs=(b"",), idempotency_key="k"))).job
    await complete(one, await claimed(one))
    again = await two.submit(job_request(idempotency_key="k", unique_key="u", mutex="x"))
    assert (again.is_new, again.job.id, again.job.state) == (False, first.id, "done")


async def test_ten_triggers_at_two_instances_are_one_job(jobs: Jobs) -> None:
    instances = jobs.open(), jobs.open()
    requests = [job_request(mutex="training", version=str(n)) for n in range(10)]
    answers = await asyncio.gather(*[instances[n % 2].submit(request) for n, request in enumerate(requests)])
    assert sum(answer.is_new for answer in answers) == 1
    assert len({answer.job.id for answer in answers}) == 1
    assert (await instances[0].counts()).queued == 1


async def test_mutex_is_held_while_the_job_waits_to_be_tried_again(store: JobStore) -> None:
    await store.submit(job_request(mutex="x"))
    job = await claimed(store)
    await store.fail(job.id, "a", "why")
    assert not (await store.submit(job_request(mutex="x"))).is_new


async def test_full_queue_refuses_new_jobs_and_says_when_to_come_back(jobs: Jobs) -> None:
    store = jobs.open(max_queued=2, retry_after=7.0)
    same = await store.submit(job_request(unique_key="u"))
    await store.submit(job_request())
    with pytest.raises(QueueFull) as caught:
        await store.submit(job_request())
    assert caught.value.retry_after == 7.0
    assert (await store.submit(job_request(unique_key="u"))).job == same.job
    await claimed(store)
    assert (await store.submit(job_request())).is_new


async def test_counts_tell_states_and_the_longest_wait(store: JobStore, jobs: Jobs) -> None:
    assert await store.counts() == Counts()
    for _ in range(5):
        await store.submit(job_request(inputs=(b"",)))
    await complete(store, await claimed(store))
    failing = await claimed(store)
    await store.fail(failing.id, "a", "why", permanent=True)
    await store.cancel((await claimed(store)).id)
    jobs.let_pass(0.02)

    async def waited() -> Counts | None:
        counts = await store.counts()
        return counts if counts.oldest_queued_seconds > 0.01 else None

    counts = await until(waited)
    assert dataclasses.replace(counts, oldest_queued_seconds=0.0) == Counts(queued=2, running=1, done=1, failed=1)


async def test_old_finished_jobs_are_pruned_with_all_they_had(store: JobStore, jobs: Jobs) -> None:
    old = (await store.submit(job_request(inputs=(b"",), idempotency_key="k"))).job
    await complete(store, await claimed(store))
    waiting = (await store.submit(job_request())).job
    assert await store.prune(3600, 100) == 0
    jobs.let_pass(0.02)

    async def pruned() -> int:
        return await store.prune(0.01, 100)

    assert await until(pruned) == 1
    with pytest.raises(JobNotFound):
        await store.get(old.id)
    assert await store.result(old.id, 0) is None
    assert (await store.get(waiting.id)).state == "queued"
    assert (await store.counts()).done == 0
    assert (await store.submit(job_request(idempotency_key="k"))).is_new


async def test_only_so_many_finished_jobs_are_kept(store: JobStore, jobs: Jobs) -> None:
    finished: list[Job] = []
    for _ in range(5):
        finished.append((await store.submit(job_request(inputs=(b"",)))).job)
        await complete(store, await claimed(store))
        jobs.let_pass(0.001)
    assert await store.prune(3600, 2) == 3
    for job in finished[:3]:
        with pytest.raises(JobNotFound):
            await store.get(job.id)
    assert (await store.counts()).done == 2
    assert await store.prune(3600, 2) == 0


async def test_probe_leaves_no_job(store: JobStore) -> None:
    await store.probe()
    assert await store.counts() == Counts()


async def test_jobs_are_there_for_the_next_process(jobs: Jobs) -> None:
    store = jobs.open()
    job = (await store.submit(job_request())).job
    await store.close()
    await store.close()
    assert await jobs.open().get(job.id) == job
    assert await store.get(job.id) == job
