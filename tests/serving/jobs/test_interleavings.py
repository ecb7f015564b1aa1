"""Whatever owners do, in whatever order: no job has two, no chunk has two results, and the counts add up."""

from __future__ import annotations

import dataclasses
import random

import pytest

from serving.jobs.job import Job, Lease
from serving.jobs.store import JobStore
from tests.serving.conftest import until
from tests.serving.jobs.conftest import LEASE, Jobs, claim, complete, job_request

pytestmark = pytest.mark.anyio

OWNERS = "abc"
STATES = ("queued", "running", "done", "failed", "cancelled")


class Play:
    """Owners that do things at random, and what must have come of it."""

    def __init__(self, jobs: Jobs, seed: int) -> None:
        self._jobs = jobs
        self._stores = [jobs.open() for _ in range(2)]
        self._random = random.Random(seed)
        self.submitted: list[str] = []
        self.kept: dict[tuple[str, int], bytes] = {}
        self._claims: list[tuple[Job, str]] = []

    @property
    def store(self) -> JobStore:
        return self._random.choice(self._stores)

    async def step(self) -> None:
        actions = [self.submit, self.claim, self.claim, self.renew, self.fail, self.release, self.cancel, self.finish]
        await self._random.choice([*actions, *[self.checkpoint] * 8])()
        self._jobs.let_pass(self._random.choice([0, 0, 0.001, 0.02]))

    async def submit(self) -> None:
        submitted = await self.store.submit(job_request(max_attempts=100, mutex=self._random.choice(["", "", "x"])))
        if submitted.id not in self.submitted:
            self.submitted.append(submitted.id)

    async def claim(self) -> None:
        owner = self._random.choice(OWNERS)
        job = await claim(self.store, owner, self._random.choice([0.003, LEASE]))
        if job is not None:
            self._claims.append((job, owner))

    async def checkpoint(self) -> None:
        if not self._claims:
            return
        job, owner = self._random.choice(self._claims[-6:])
        chunk, result = self._random.randrange(3), b"%s %d" % (owner.encode(), self._random.getrandbits(32))
        answer = await self.store.checkpoint(job.id, owner, self._random.choice([0.003, LEASE]), chunk, result)
        await self.check_lease(job, owner, answer)
        if answer != "lost":
            self.kept.setdefault((job.id, chunk), result)
        assert await self.store.result(job.id, chunk) == self.kept.get((job.id, chunk))

    async def check_lease(self, job: Job, owner: str, answer: Lease) -> None:
        present = await self.store.get(job.id)
        if answer == "lost":
            assert (present.state, present.owner) != ("running", owner)
        else:
            assert (present.owner, present.cancelling) == (owner, answer == "cancelled")

    async def renew(self) -> None:
        if self._claims:
            job, owner = self._random.choice(self._claims)
            await self.check_lease(job, owner, await self.store.heartbeat(job.id, owner, LEASE))

    async def fail(self) -> None:
        if self._claims:
            job, owner = self._random.choice(self._claims)
            await self.store.fail(job.id, owner, "why", permanent=self._random.random() < 0.1)

    async def release(self) -> None:
        if self._claims:
            job, owner = self._random.choice(self._claims)
            await self.store.release(job.id, owner)

    async def finish(self) -> None:
        if self._claims:
            job, owner = self._random.choice(self._claims)
            if not await self.store.missing(job.id):
                await self.store.finish(job.id, owner)

    async def cancel(self) -> None:
        if self.submitted and self._random.random() < 0.2:
            await self.store.cancel(self._random.choice(self.submitted))

    async def finish_all(self) -> None:
        """A last runner does what is left."""

        async def all_finished() -> bool:
            self._jobs.let_pass(LEASE)
            job = await claim(self.store, "last")
            if job is not None:
                missing = await self.store.missing(job.id)
                await complete(self.store, job, "last")
                self.kept.update({(job.id, chunk): b"result %d" % chunk for chunk in missing})
            for held, owner in self._claims:  # a lease of a minute is too long to wait for
                await self.store.release(held.id, owner)
            return job is None and all([(await self.store.get(job_id)).is_finished for job_id in self.submitted])

        await until(all_finished)


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_calls_keeps_every_chunk_once(jobs: Jobs, seed: int) -> None:
    play = Play(jobs, seed)
    for _ in range(400):
        await play.step()
    await play.finish_all()
    ended = [await play.store.get(job_id) for job_id in play.submitted]
    for job in ended:
        kept = [play.kept.get((job.id, chunk)) for chunk in range(3)]
        assert [await play.store.result(job.id, chunk) for chunk in range(3)] == kept
        assert job.chunks_done == sum(result is not None for result in kept)
        assert job.state != "done" or job.chunks_done == job.chunks
        page = await jobs.open_events().read(job.id, 0, 1000)
        kinds = [event.kind for event in page.events if event.kind != "progress"]
        assert kinds == ["chunk"] * job.chunks_done + [job.state]
    counts = dataclasses.asdict(await play.store.counts())
    assert {state: counts[state] for state in STATES} == {
        state: sum(job.state == state for job in ended) for state in STATES
    }
    assert counts["done"] > 3
