"""One attempt at a job: works on its missing chunks, while heartbeats renew the lease and learn of a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

import structlog

from serving.errors import ServingError, StoreUnavailable
from serving.jobs.job import Job, Lease
from serving.jobs.store import JobStore

log = structlog.get_logger(__name__)

AttemptOutcome = Literal["done", "failed", "queued", "cancelled", "released", "lost"]

Report = Callable[[float], None]
"""Called with the share of the chunk that is done, from 0 to 1."""

Handler = Callable[[Job, int, bytes, Report], Awaitable[bytes]]
"""Takes a job, the number of a chunk and its input, and returns its result. May be cancelled at any time."""

HEARTBEAT_SECONDS = 1.0
"""Longest time between heartbeats, and so until a cancellation takes effect."""

RETRY_SECONDS = 0.5
"""Between calls to a store that is unavailable."""

T = TypeVar("T")


class JobFailed(Exception):
    """The job has failed, and a retry would not help. The message is for the client."""


class AttemptFailed(Exception):
    """The attempt has failed, and may be retried. The message is for the client."""


class Attempt:
    """A claimed job and the owner of its lease."""

    def __init__(self, store: JobStore, job: Job, *, owner: str, lease: float, chunks_at_once: int = 1) -> None:
        self._store = store
        self._job = job
        self._owner = owner
        self._lease = lease
        self._chunks_at_once = chunks_at_once
        self._done = 0
        self._shares: dict[int, float] = {}
        self._progress = job.progress

    async def run(self, handler: Handler, stopping: asyncio.Event) -> AttemptOutcome:
        """Work until the job is done, fails, is cancelled or lost, or the runner stops. Raises ServingError."""
        working = asyncio.create_task(self._work(handler))
        beating = asyncio.create_task(self._beat())
        stopped = asyncio.create_task(stopping.wait())
        tasks = (working, beating, stopped)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return await self._conclude(working)
            lease = await beating if beating.done() else "held"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return await self._let_go(lease)

    async def _work(self, handler: Handler) -> Lease:
        """Work on all missing chunks, several at once; the first one to fail stops the others."""
        missing = await self._patiently(partial(self._store.missing, self._job.id))
        self._done = self._job.chunks - len(missing)
        todo = iter(missing)
        lanes = [asyncio.create_task(self._lane(handler, todo)) for _ in missing[: self._chunks_at_once]]
        try:
            for ended in asyncio.as_completed(lanes):
                if (lease := await ended) != "held":
                    return lease
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        return "held"

    async def _lane(self, handler: Handler, todo: Iterator[int]) -> Lease:
        """Work on one chunk after the other, of those that no other lane has taken."""
        job = self._job
        for chunk in todo:
            data = await self._patiently(partial(self._store.input, job.id, chunk))
            result = await handler(job, chunk, data, partial(self._report, chunk))
            keep = partial(self._store.checkpoint, job.id, self._owner, self._lease, chunk, result)
            lease = await self._patiently(keep)
            if lease != "held":
                return lease
            self._done += 1
            self._report(chunk, 0.0)
        return "held"

    def _report(self, chunk: int, share: float) -> None:
        self._shares[chunk] = share
        self._progress = (self._done + sum(self._shares.values())) / self._job.chunks

    async def _beat(self) -> Lease:
        """Renew the lease until it is no longer held."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self._lease / 4))
            try:
                lease = await self._store.heartbeat(self._job.id, self._owner, self._lease, self._progress)
            except StoreUnavailable as error:
                log.warning("Heartbeat failed", job=self._job.id, error=str(error))
                continue
            if lease != "held":
                return lease

    async def _conclude(self, working: asyncio.Task[Lease]) -> AttemptOutcome:
        """Finish the job, or record its failure, once the work has ended."""
        try:
            lease = await working
        except JobFailed as error:
            return await self._fail(str(error), permanent=True)
        except AttemptFailed as error:
            return await self._fail(str(error), permanent=False)
        except ServingError:  # a fault of the runner or the store, not of the job
            raise
        except Exception:
            # whatever a handler raises, the job fails and not the runner
            log.exception("Job handler failed", job=self._job.id)
            return await self._fail("internal error; see the log", permanent=False)
        if lease != "held":
            return await self._let_go(lease)
        job = await self._patiently(partial(self._store.finish, self._job.id, self._owner))
        return _outcome(job)

    async def _fail(self, error: str, *, permanent: bool) -> AttemptOutcome:
        fail = partial(self._store.fail, self._job.id, self._owner, error, permanent=permanent)
        return _outcome(await self._patiently(fail))

    async def _let_go(self, lease: Lease) -> AttemptOutcome:
        if lease == "lost":
            return "lost"
        job = await self.release()
        return "released" if job is not None and job.state == "queued" else _outcome(job)

    async def release(self) -> Job | None:
        """Give the job back, for another runner to continue."""
        return await self._store.release(self._job.id, self._owner)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the store; retry while it is unavailable and the lease may still be held."""
        deadline = asyncio.get_running_loop().time() + self._lease
        while asyncio.get_running_loop().time() < deadline:
            with suppress(StoreUnavailable):
                return await call()
            await asyncio.sleep(RETRY_SECONDS)
        return await call()


def _outcome(job: Job | None) -> AttemptOutcome:
    if job is None:
        return "lost"
    assert job.state != "running"
    return job.state
