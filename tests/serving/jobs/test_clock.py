"""A clock that ran ahead for a while and was set right again: what was written meanwhile is not waited for."""

from __future__ import annotations

import pytest
import redis

from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, SOON, Jobs, claim, claimed, job_request

pytestmark = pytest.mark.anyio

HOUR = 3600.0
PREFIX = "forkserve:{jobs}:"


class Clock:
    """That of a store; what is changed `before` it is set right was written an hour ahead."""

    def __init__(self, jobs: Jobs, raw: redis.Redis) -> None:
        self._jobs = jobs
        self._raw = raw

    def run_ahead(self) -> None:
        self._jobs.let_pass(HOUR)

    def set_right(self, job_id: str) -> None:
        """Redis has its own clock, which no test can set: what it has noted of a job is moved instead."""
        self._jobs.let_pass(-HOUR)
        if self._jobs.kind == "redis":
            created = self._raw.hget(f"{PREFIX}job:{job_id}", "created")
            assert isinstance(created, bytes)
            self._raw.hset(f"{PREFIX}job:{job_id}", "created", f"{float(created) + HOUR:f}")
            for ordered in ("running", "due:explain"):
                if self._raw.zscore(PREFIX + ordered, job_id) is not None:
                    self._raw.zincrby(PREFIX + ordered, HOUR, job_id)


@pytest.fixture
def clock(jobs: Jobs, raw: redis.Redis) -> Clock:
    return Clock(jobs, raw)


async def test_a_job_that_was_submitted_meanwhile_is_due(store: JobStore, clock: Clock) -> None:
    clock.run_ahead()
    job = await store.submit(job_request(unique_key="schedule x", mutex="train x"))
    clock.set_right(job.id)
    assert (await claimed(store)).id == job.id


async def test_a_job_that_is_delayed_by_intent_is_still_waited_for(store: JobStore, clock: Clock) -> None:
    early = await store.submit(job_request(delay=HOUR))
    clock.run_ahead()
    late = await store.submit(job_request())
    clock.set_right(late.id)
    assert (await claimed(store)).id == late.id
    assert await claim(store) is None
    assert (await store.get(early.id)).state == "queued"


async def test_a_retry_that_was_put_off_meanwhile_is_due(store: JobStore, clock: Clock, jobs: Jobs) -> None:
    job = await store.submit(job_request())
    await claimed(store)
    clock.run_ahead()
    await store.fail(job.id, "a", "no luck")
    clock.set_right(job.id)
    assert (await until(lambda: claim(store))).id == job.id
    assert SOON.longest < HOUR


async def test_a_lease_of_a_dead_runner_that_was_renewed_meanwhile_is_over(store: JobStore, clock: Clock) -> None:
    job = await store.submit(job_request())
    await claimed(store)
    clock.run_ahead()
    assert await store.heartbeat(job.id, "a", LEASE) == "held"
    clock.set_right(job.id)
    again = await store.claim("b", LEASE, ["explain"])
    assert again is not None
    assert again.id == job.id
    assert await store.heartbeat(job.id, "a", LEASE) == "lost"


async def test_a_lease_that_was_taken_meanwhile_is_over_whatever_the_others_lease(
    store: JobStore, clock: Clock
) -> None:
    clock.run_ahead()
    job = await store.submit(job_request())
    await claimed(store)
    clock.set_right(job.id)
    again = await store.claim("b", LEASE / 10, ["explain"])
    assert again is not None
    assert again.id == job.id


async def test_a_longer_lease_than_ones_own_holds(store: JobStore) -> None:
    job = await store.submit(job_request())
    assert await store.claim("a", 100 * LEASE, ["explain"]) is not None
    assert await store.claim("b", LEASE, ["explain"]) is None
    assert await store.heartbeat(job.id, "a", 100 * LEASE) == "held"


async def test_a_runner_that_lives_keeps_its_job_when_the_clock_is_set_right(store: JobStore, clock: Clock) -> None:
    job = await store.submit(job_request())
    await claimed(store)
    clock.run_ahead()
    await store.heartbeat(job.id, "a", LEASE)
    clock.set_right(job.id)
    assert await store.heartbeat(job.id, "a", LEASE) == "held"
    assert await store.claim("b", LEASE, ["explain"]) is None
    assert await store.heartbeat(job.id, "a", LEASE) == "held"
