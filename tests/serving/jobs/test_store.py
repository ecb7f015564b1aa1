"""What every store of jobs must do, whichever it is."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from serving.errors import JobNotFound, QueueFull
from serving.events.log import EventLog
from serving.jobs.job import Backoff, Counts, Job, JobRequest
from serving.jobs.results import whole_result
from serving.jobs.store import KEPT_FIELDS, RETRY_AFTER_SECONDS, JobStore, QueueLimits
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, Jobs, adds_a_job, claim, claimed, complete, job_request

pytestmark = pytest.mark.anyio


async def test_submitted_job_is_found_as_it_was_requested(store: JobStore) -> None:
    request = job_request(
        parameters=b"\x00\xff",
        unique_key="u",
        idempotency_key="i",
        mutex="x",
        client="c",
        account="key:c",
        max_attempts=5,
    )
    job = await store.submit(request)
    assert await store.get(job.id) == job
    assert (job.state, job.progress, job.attempts, job.chunks, job.chunks_done) == ("queued", 0.0, 0, 3, 0)
    assert (job.started, job.finished, job.error, job.owner, job.cancelling) == (None, None, "", "", False)
    for name in KEPT_FIELDS:
        assert getattr(job, name) == getattr(request, name)
    assert job.max_attempts == 5
    assert 1.7e9 <= job.created == job.due < 1e10


async def test_ids_are_long_random_and_need_no_escaping(store: JobStore) -> None:
    ids = {(await store.submit(job_request())).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(job_id) == 24 and job_id.replace("-", "").replace("_", "").isalnum() for job_id in ids)


async def test_job_runs_chunk_by_chunk_to_its_end(store: JobStore) -> None:
    submitted = await store.submit(job_request())
    job = await claimed(store)
    assert (job.id, job.state, job.owner, job.attempts) == (submitted.id, "running", "a", 1)
    assert job.started is not None
    assert [await store.input(job.id, chunk) for chunk in range(3)] == [b"0", b"1", b"2"]
    for done, chunk in enumerate([1, 0, 2], 1):
        assert await store.checkpoint(job.id, "a", LEASE, chunk, b"result %d" % chunk) == "held"
        assert (await store.get(job.id)).progress == pytest.approx(done / 3, abs=1e-6)
    finished = await store.finish(job.id, "a")
    assert finished == await store.get(job.id)
    assert finished is not None
    assert (finished.state, finished.progress, finished.chunks_done) == ("done", 1.0, 3)
    assert finished.finished is not None
    assert finished.is_finished
    assert [result async for result in whole_result(store, finished)] == [b"result 0", b"result 1", b"result 2"]
    with pytest.raises(JobNotFound):
        await store.input(job.id, 0)


async def test_unknown_job_is_not_found(store: JobStore) -> None:
    for call in (store.get("?"), store.cancel("?"), store.missing("?"), store.input("?", 0)):
        with pytest.raises(JobNotFound):
            await call
    assert await store.result("?", 0) is None
    assert await store.heartbeat("?", "a", LEASE) == "lost"
    assert await store.checkpoint("?", "a", LEASE, 0, b"") == "lost"
    assert [await store.finish("?", "a"), await store.fail("?", "a", ""), await store.release("?", "a")] == [None] * 3


async def test_results_end_at_the_first_that_is_missing(store: JobStore) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    for chunk in (0, 2):
        await store.checkpoint(job.id, "a", LEASE, chunk, b"%d" % chunk)
    found = whole_result(store, job)
    assert await anext(found) == b"0"
    with pytest.raises(JobNotFound):
        await anext(found)
    assert await store.missing(job.id) == [1]
    with pytest.raises(ValueError, match="missing"):
        await store.finish(job.id, "a")


async def test_only_the_first_result_of_a_chunk_is_kept(store: JobStore) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    for result in (b"first", b"second"):
        assert await store.checkpoint(job.id, "a", LEASE, 0, result) == "held"
    assert await store.result(job.id, 0) == b"first"
    assert (await store.get(job.id)).chunks_done == 1


@pytest.mark.parametrize("chunk", [-1, 3])
async def test_chunk_that_the_job_does_not_have_is_refused(store: JobStore, chunk: int) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    with pytest.raises(ValueError, match="no chunk"):
        await store.checkpoint(job.id, "a", LEASE, chunk, b"")
    assert (await store.get(job.id)).chunks_done == 0


@pytest.mark.parametrize("data", [b"", b"\x00\r\n$-1\r\n", bytes(range(256)), b"x" * 1_000_000])
async def test_any_bytes_come_back_as_they_were(store: JobStore, data: bytes) -> None:
    await store.submit(job_request(inputs=(data,), parameters=data))
    job = await claimed(store)
    assert job.parameters == data
    assert await store.input(job.id, 0) == data
    await store.checkpoint(job.id, "a", LEASE, 0, data)
    assert await store.result(job.id, 0) == data


async def test_jobs_are_claimed_in_the_order_in_which_they_are_due(store: JobStore, jobs: Jobs) -> None:
    late = await store.submit(job_request(delay=0.02))
    jobs.let_pass(0.001)
    soon = [await store.submit(job_request(operation=operation)) for operation in ("explain", "predict") * 2]
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
    submitted = {(await stores[0].submit(job_request())).id for _ in range(20)}
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
    assert [result async for result in whole_result(store, done)] == [b"result 0", b"by a", b"result 2"]


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
    job = await store.submit(job_request(max_attempts=10))
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


async def test_equal_requests_are_one_job_until_it_has_ended(jobs: Jobs) -> None:
    one, two = jobs.open(), jobs.open()
    first = await one.submit(job_request(unique_key="u"))
    assert await two.submit(job_request(unique_key="u")) == first
    job = await claimed(one)
    assert (await two.submit(job_request(unique_key="u"))).id == job.id
    await one.fail(job.id, "a", "why", permanent=True)
    assert await adds_a_job(two, job_request(unique_key="u"))
    assert await adds_a_job(two, job_request(unique_key="other"))


async def test_idempotency_key_is_answered_with_the_same_job_even_when_it_has_ended(jobs: Jobs) -> None:
    one, two = jobs.open(), jobs.open()
    first = await one.submit(job_request(inputs=(b"",), idempotency_key="k"))
    await complete(one, await claimed(one))
    again = await two.submit(job_request(idempotency_key="k", unique_key="u", mutex="x"))
    assert (again.id, again.state) == (first.id, "done")


async def test_ten_triggers_at_two_instances_are_one_job(jobs: Jobs) -> None:
    instances = jobs.open(), jobs.open()
    requests = [job_request(mutex="training", version=str(n)) for n in range(10)]
    answers = await asyncio.gather(*[instances[n % 2].submit(request) for n, request in enumerate(requests)])
    assert len({answer.id for answer in answers}) == 1
    assert (await instances[0].counts()).queued == 1


async def test_mutex_is_held_while_the_job_waits_to_be_tried_again(store: JobStore) -> None:
    await store.submit(job_request(mutex="x"))
    job = await claimed(store)
    await store.fail(job.id, "a", "why")
    assert not await adds_a_job(store, job_request(mutex="x"))


async def test_full_queue_refuses_new_jobs_and_says_when_to_come_back(jobs: Jobs) -> None:
    store = jobs.open(limits=QueueLimits(jobs=2))
    same = await store.submit(job_request(unique_key="u"))
    await store.submit(job_request())
    with pytest.raises(QueueFull) as caught:
        await store.submit(job_request())
    assert caught.value.retry_after == RETRY_AFTER_SECONDS
    assert await store.submit(job_request(unique_key="u")) == same
    await claimed(store)
    assert await adds_a_job(store, job_request())


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
    old = await store.submit(job_request(inputs=(b"",), idempotency_key="k"))
    await complete(store, await claimed(store))
    waiting = await store.submit(job_request())
    assert await store.prune(3600, 100, 1 << 30) == 0
    jobs.let_pass(0.02)

    async def pruned() -> int:
        return await store.prune(0.01, 100, 1 << 30)

    assert await until(pruned) == 1
    with pytest.raises(JobNotFound):
        await store.get(old.id)
    assert await store.result(old.id, 0) is None
    assert (await store.get(waiting.id)).state == "queued"
    assert (await store.counts()).done == 0
    assert await adds_a_job(store, job_request(idempotency_key="k"))


async def test_only_so_many_finished_jobs_are_kept(store: JobStore, jobs: Jobs) -> None:
    finished: list[Job] = []
    for _ in range(5):
        finished.append(await store.submit(job_request(inputs=(b"",))))
        await complete(store, await claimed(store))
        jobs.let_pass(0.001)
    assert await store.prune(3600, 2, 1 << 30) == 3
    for job in finished[:3]:
        with pytest.raises(JobNotFound):
            await store.get(job.id)
    assert (await store.counts()).done == 2
    assert await store.prune(3600, 2, 1 << 30) == 0


async def test_probe_leaves_no_job(store: JobStore) -> None:
    await store.probe()
    assert await store.counts() == Counts()


async def test_jobs_are_there_for_the_next_process(jobs: Jobs) -> None:
    store = jobs.open()
    job = await store.submit(job_request())
    await store.close()
    await store.close()
    assert await jobs.open().get(job.id) == job
    assert await store.get(job.id) == job


async def test_queued_job_is_cancelled_at_once(store: JobStore) -> None:
    job = await store.submit(job_request(mutex="x"))
    cancelled = await store.cancel(job.id)
    assert cancelled.state == "cancelled"
    assert cancelled.finished is not None
    assert await claim(store) is None
    assert await adds_a_job(store, job_request(mutex="x"))


async def test_running_job_learns_that_it_is_cancelled_and_keeps_its_mutex_until_it_lets_go(store: JobStore) -> None:
    await store.submit(job_request(mutex="x"))
    job = await claimed(store)
    asked = await store.cancel(job.id)
    assert (asked.state, asked.cancelling) == ("running", True)
    assert await store.heartbeat(job.id, "a", LEASE) == "cancelled"
    assert await store.checkpoint(job.id, "a", LEASE, 0, b"") == "cancelled"
    assert not await adds_a_job(store, job_request(mutex="x"))
    released = await store.release(job.id, "a")
    assert released is not None
    assert released.state == "cancelled"
    assert await adds_a_job(store, job_request(mutex="x"))


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
    job = await store.get((await store.submit(job_request(idempotency_key="k"))).id)
    assert (await store.cancel(job.id)).state == "cancelled"
    assert (await store.cancel(job.id)).state == "cancelled"
    assert (await store.counts()) == Counts(done=1, cancelled=1)


async def told(events: EventLog, job: Job) -> list[tuple[str, Any]]:
    """The kinds of a job's events and what they say."""
    page = await events.read(job.id, 0, 100)
    return [(event.kind, json.loads(event.data)) for event in page.events]


async def test_progress_chunks_and_the_end_are_events_each_once(store: JobStore, events: EventLog) -> None:
    await store.submit(job_request(inputs=(b"", b"")))
    job = await claimed(store)
    for progress in (0.25, 0.25, 0.1, 0.25001):
        await store.heartbeat(job.id, "a", LEASE, progress)
    for chunk in (1, 1, 0):
        await store.checkpoint(job.id, "a", LEASE, chunk, b"")
    await store.heartbeat(job.id, "a", LEASE, 1.0)
    for _ in range(2):
        await store.finish(job.id, "a")
    assert await told(events, job) == [
        ("progress", {"progress": 0.25}),
        ("chunk", {"chunk": 1, "chunks_done": 1, "chunks": 2}),
        ("chunk", {"chunk": 0, "chunks_done": 2, "chunks": 2}),
        ("done", {"state": "done", "error": ""}),
    ]


async def test_what_did_not_happen_is_no_event(store: JobStore, events: EventLog) -> None:
    await store.submit(job_request())
    job = await claimed(store)
    with pytest.raises(ValueError, match="missing"):
        await store.finish(job.id, "a")
    with pytest.raises(ValueError, match="no chunk"):
        await store.checkpoint(job.id, "a", LEASE, 7, b"")
    for call in (store.finish(job.id, "b"), store.fail(job.id, "b", "why", permanent=True), store.release(job.id, "b")):
        assert await call is None
    await store.heartbeat(job.id, "b", LEASE, 0.5)
    await store.cancel(job.id)
    assert await told(events, job) == []


async def test_attempts_that_are_tried_again_are_no_event_and_the_last_failure_is(
    store: JobStore, jobs: Jobs, events: EventLog
) -> None:
    job = await store.submit(job_request(max_attempts=2))
    for reason in ("first", 'a/"b" \ud800'):
        await until(lambda: claim(store))
        await store.fail(job.id, "a", reason)
        jobs.let_pass(1)
    assert await told(events, job) == [("failed", {"state": "failed", "error": 'a/"b" ?'})]


async def test_cancelled_jobs_are_told_of_when_they_have_ended(store: JobStore, events: EventLog) -> None:
    for _ in range(2):
        await store.submit(job_request())
    running, failing = await claimed(store), await claimed(store)
    queued = await store.submit(job_request())
    for job in (running, failing, queued, queued):
        await store.cancel(job.id)
    assert await told(events, running) == []
    await store.release(running.id, "a")
    await store.fail(failing.id, "a", "why")
    for job in (running, failing, queued):
        assert await told(events, job) == [("cancelled", {"state": "cancelled", "error": ""})]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_end_of_a_job_whose_runner_died_is_an_event_without_the_owner(
    store: JobStore, jobs: Jobs, events: EventLog, state: str
) -> None:
    job = await store.submit(job_request(max_attempts=1))
    await claimed(store, "secret-host", 0.05)
    if state == "cancelled":
        await store.cancel(job.id)
    jobs.let_pass(0.1)

    async def ended() -> list[tuple[str, Any]]:
        assert await claim(store, "b") is None
        return await told(events, job)

    error = "lost with its runner" if state == "failed" else ""
    assert await until(ended) == [(state, {"state": state, "error": error})]


async def test_request_whose_mutex_is_held_is_given_the_holder_although_its_key_is_new(store: JobStore) -> None:
    """A firing of a schedule is a job under its own idempotency key, and the mutex prevents overlaps."""
    first = await store.submit(job_request(idempotency_key="backup@1", mutex="schedule:backup"))
    assert not await adds_a_job(store, job_request(idempotency_key="backup@1", mutex="schedule:backup"))
    for _ in range(2):
        second = await store.submit(job_request(idempotency_key="backup@2", mutex="schedule:backup"))
        assert (second.id, second.idempotency_key) == (first.id, "backup@1")
        await claim(store)
    await store.fail(first.id, "a", "why", permanent=True)
    again = await store.submit(job_request(idempotency_key="backup@1", mutex="schedule:backup"))
    assert (again.id, again.state) == (first.id, "failed")
    assert await adds_a_job(store, job_request(idempotency_key="backup@2", mutex="schedule:backup"))


async def test_waiting_jobs_are_limited_by_account(jobs: Jobs) -> None:
    store = jobs.open(limits=QueueLimits(jobs=4, jobs_of_account=2))
    mine = [await store.submit(job_request(account="mine")) for _ in range(2)]
    with pytest.raises(QueueFull, match="too many jobs of this client are waiting"):
        await store.submit(job_request(account="mine"))
    await store.submit(job_request(account="theirs"))
    await store.submit(job_request())
    with pytest.raises(QueueFull, match="too many jobs are waiting"):
        await store.submit(job_request(account="theirs"))
    await store.cancel(mine[0].id)
    await store.submit(job_request(account="mine"))
    claimed_job = await claimed(store)
    assert claimed_job.account == "mine"
    await store.submit(job_request(account="mine"))
    await store.release(claimed_job.id, "a")
    with pytest.raises(QueueFull, match="are waiting"):
        await store.submit(job_request(account="mine"))


def heavy(account: str, size: int = 100) -> JobRequest:
    return job_request(account=account, inputs=(b"x" * (size // 2),) * 2)


async def test_bytes_of_unfinished_jobs_are_limited_in_all_and_by_account(jobs: Jobs) -> None:
    store = jobs.open(limits=QueueLimits(bytes=400, bytes_of_account=200))
    mine = [await store.submit(heavy("mine")) for _ in range(2)]
    with pytest.raises(QueueFull, match="the rows of this client's waiting jobs") as caught:
        await store.submit(heavy("mine", 2))
    assert caught.value.retry_after == RETRY_AFTER_SECONDS
    await store.submit(heavy("theirs", 198))
    with pytest.raises(QueueFull, match="the rows of waiting jobs take"):
        await store.submit(heavy("", 4))
    await store.submit(heavy("others", 2))
    assert await adds_a_job(store, job_request(operation="train", inputs=(b"",))), "it brings no bytes"

    running = await claimed(store)
    assert running.id == mine[0].id
    with pytest.raises(QueueFull):
        await store.submit(heavy("mine"))  # what is running is still there
    await store.release(running.id, "a")
    await complete(store, await claimed(store))
    await store.submit(heavy("mine"))
    for end in (store.cancel(mine[1].id), fail(store)):
        await end
        await store.submit(heavy("mine"))
        with pytest.raises(QueueFull):
            await store.submit(heavy("mine", 2))


async def fail(store: JobStore) -> None:
    job = await claimed(store)
    while job.account != "mine":
        job = await claimed(store)
    await store.fail(job.id, "a", "why", permanent=True)


async def test_jobs_submitted_at_once_never_exceed_the_bytes(jobs: Jobs) -> None:
    stores = [jobs.open(limits=QueueLimits(bytes=1000, bytes_of_account=300)) for _ in range(3)]
    asked = [stores[number % 3].submit(heavy("mine")) for number in range(12)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, Job) for one in found) == 3
    assert all(isinstance(one, Job | QueueFull) for one in found)


async def finish(store: JobStore, jobs: Jobs, account: str, size: int) -> str:
    """The id of a job whose result has so many bytes."""
    job = await store.submit(job_request(account=account, inputs=(b"",)))
    claimed_job = await claimed(store)
    assert claimed_job.id == job.id
    await store.checkpoint(job.id, "a", LEASE, 0, b"x" * size)
    await store.finish(job.id, "a")
    jobs.let_pass(0.01)
    return job.id


async def kept(store: JobStore, ids: list[str]) -> list[bool]:
    async def is_kept(job_id: str) -> bool:
        with suppress(JobNotFound):
            return bool(await store.get(job_id))
        return False

    return [await is_kept(job_id) for job_id in ids]


async def test_many_finished_jobs_of_one_account_displace_none_of_another(store: JobStore, jobs: Jobs) -> None:
    theirs = [await finish(store, jobs, "theirs", 10) for _ in range(2)]
    mine = [await finish(store, jobs, "mine", 10) for _ in range(6)]
    assert await store.prune(3600, 5, 1 << 30) == 3
    assert await kept(store, theirs) == [True] * 2
    assert await kept(store, mine) == [False] * 3 + [True] * 3
    assert await store.prune(3600, 5, 1 << 30) == 0


async def test_large_results_of_one_account_displace_none_of_another(store: JobStore, jobs: Jobs) -> None:
    theirs = [await finish(store, jobs, "theirs", 2000) for _ in range(2)]
    mine = [await finish(store, jobs, "mine", 4000) for _ in range(4)]
    assert await store.prune(3600, 100, 17_000) == 1
    assert await kept(store, theirs) == [True] * 2
    assert await kept(store, mine) == [False] + [True] * 3
    assert await store.prune(3600, 100, 8_100) == 2
    assert await kept(store, theirs + mine) == [True] * 2 + [False] * 3 + [True]


async def test_equal_keys_of_two_clients_are_two_jobs(store: JobStore) -> None:
    asked = job_request(unique_key="u", idempotency_key="i")
    jobs = [await store.submit(asked.of(client)) for client in ("", "a", "b", "a")]
    assert len({job.id for job in jobs}) == 3
    assert jobs[1] == jobs[3]


async def test_all_jobs_of_a_client_are_deleted_and_no_others(store: JobStore) -> None:
    mine = {"client": "c", "account": "key:c"}
    finished = await store.submit(job_request(**mine, idempotency_key="once"))
    await complete(store, await claimed(store))
    running = await store.submit(job_request(**mine))
    assert (await claimed(store)).id == running.id
    queued = await store.submit(job_request(**mine, unique_key="u"))
    other = await store.submit(job_request(client="d", account="key:d"))
    assert sorted(await store.delete_of("c")) == sorted([finished.id, running.id, queued.id])
    for job in (finished, running, queued):
        with pytest.raises(JobNotFound):
            await store.get(job.id)
    assert await store.heartbeat(running.id, "a", LEASE) == "lost"
    assert await store.result(finished.id, 0) is None
    assert await store.get(other.id) == other
    counts = await store.counts()
    assert (counts.queued, counts.running, counts.done, counts.cancelled) == (1, 0, 0, 0)
    assert (await store.submit(job_request(**mine, idempotency_key="once"))).id != finished.id
    assert await store.delete_of("nobody") == []
