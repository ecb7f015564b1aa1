"""What every store of jobs must do, whichever it is: requests, chunks and results."""

from __future__ import annotations

import pytest

from serving.errors import JobNotFound
from serving.jobs.store import JobStore, results
from tests.serving.jobs.conftest import LEASE, claimed, job_request

pytestmark = pytest.mark.anyio


async def test_submitted_job_is_found_as_it_was_requested(store: JobStore) -> None:
    request = job_request(parameters=b"\x00\xff", unique_key="u", idempotency_key="i", mutex="x", max_attempts=5)
    submitted = await store.submit(request)
    job = submitted.job
    assert submitted.is_new
    assert await store.get(job.id) == job
    assert (job.state, job.progress, job.attempts, job.chunks, job.chunks_done) == ("queued", 0.0, 0, 3, 0)
    assert (job.started, job.finished, job.error, job.owner, job.cancelling) == (None, None, "", "", False)
    for name in ("operation", "model", "version", "parameters", "unique_key", "idempotency_key", "mutex"):
        assert getattr(job, name) == getattr(request, name)
    assert job.max_attempts == 5
    assert 1.7e9 <= job.created == job.due < 1e10


async def test_ids_are_long_random_and_need_no_escaping(store: JobStore) -> None:
    ids = {(await store.submit(job_request())).job.id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(job_id) == 24 and job_id.replace("-", "").replace("_", "").isalnum() for job_id in ids)


async def test_job_runs_chunk_by_chunk_to_its_end(store: JobStore) -> None:
    submitted = (await store.submit(job_request())).job
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
    assert [result async for result in results(store, finished)] == [b"result 0", b"result 1", b"result 2"]
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
    assert [result async for result in results(store, job)] == [b"0"]
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
