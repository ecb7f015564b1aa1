"""One attempt at a job: its missing chunks one by one, while heartbeats renew the lease and hear of a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

import msgspec
import structlog

from serving.errors import ServingError, StoreUnavailable
from serving.events.log import EventLog
from serving.jobs.handlers import AttemptFailed, Handler, JobFailed
from serving.jobs.job import Job, Lease
from serving.jobs.store import JobStore

log = structlog.get_logger(__name__)

Outcome = Literal["done", "failed", "queued", "cancelled", "released", "lost"]

HEARTBEAT_SECONDS = 1.0
"""At most: a cancellation is heard of within this."""

RETRY_SECONDS = 0.5

T = TypeVar("T")


class Attempt:
    """A claimed job in the hands of its owner."""

    def __init__(self, store: JobStore, events: EventLog, job: Job, *, owner: str, lease: float) -> None:
        self._store = store
        self._events = events
        self._job = job
        self._owner = owner
        self._lease = lease
        self._progress = self._told = job.progress

    async def run(self, handler: Handler, stopping: asyncio.Event) -> Outcome:
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
        job = self._job
        missing = await self._patiently(partial(self._store.missing, job.id))
        done = job.chunks - len(missing)
        for chunk in missing:
            data = await self._patiently(partial(self._store.input, job.id, chunk))
            result = await handler(job, chunk, data, partial(self._report, done))
            keep = partial(self._store.checkpoint, job.id, self._owner, self._lease, chunk, result)
            lease = await self._patiently(keep)
            if lease != "held":
                return lease
            done += 1
            self._report(done)
            await self.tell("chunk", chunk=chunk, chunks_done=done, chunks=job.chunks)
        return "held"

    def _report(self, chunks: int, share: float = 0.0) -> None:
        """So many chunks are done, and a share of the next one."""
        self._progress = (chunks + share) / self._job.chunks

    async def _beat(self) -> Lease:
        """Renew the lease until it is not held any more."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self._lease / 4))
            try:
                lease = await self._store.heartbeat(self._job.id, self._owner, self._lease, self._progress)
            except StoreUnavailable as error:
                log.warning("Heartbeat failed", job=self._job.id, error=str(error))
                continue
            if lease != "held":
                return lease
            if self._progress > self._told:
                self._told = self._progress
                await self.tell("progress", progress=round(self._progress, 4))

    async def _conclude(self, working: asyncio.Task[Lease]) -> Outcome:
        """What became of work that has come to its end."""
        try:
            lease = await working
        except JobFailed as error:
            return await self._fail(str(error), permanent=True)
        except AttemptFailed as error:
            return await self._fail(str(error), permanent=False)
        except ServingError:  # the runner's own trouble, not the job's
            raise
        except Exception:
            # whatever a handler raises, the job is to fail, not the runner
            log.exception("Job broke", job=self._job.id)
            return await self._fail("an internal error; the log knows more", permanent=False)
        if lease != "held":
            return await self._let_go(lease)
        job = await self._patiently(partial(self._store.finish, self._job.id, self._owner))
        return await self._end(job)

    async def _fail(self, error: str, *, permanent: bool) -> Outcome:
        fail = partial(self._store.fail, self._job.id, self._owner, error, permanent=permanent)
        return await self._end(await self._patiently(fail))

    async def _let_go(self, lease: Lease) -> Outcome:
        if lease == "lost":
            return "lost"
        job = await self.release()
        return "released" if job is not None and job.state == "queued" else await self._end(job)

    async def release(self) -> Job | None:
        """Give the job back, for another runner to go on with."""
        return await self._store.release(self._job.id, self._owner)

    async def _end(self, job: Job | None) -> Outcome:
        if job is None:
            return "lost"
        assert job.state != "running"
        if job.is_finished:
            await self.tell(job.state, state=job.state, error=job.error)
        return job.state

    async def tell(self, kind: str, **data: object) -> None:
        """Tell an event of the job. The job goes on without: the store knows what has happened."""
        try:
            await self._events.append(self._job.id, kind, msgspec.json.encode(data))
        except StoreUnavailable as error:
            log.warning("Event is lost", job=self._job.id, kind=kind, error=str(error))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Its answer, asked for again while the store is away and the lease may still be ours."""
        deadline = asyncio.get_running_loop().time() + self._lease
        while asyncio.get_running_loop().time() < deadline:
            with suppress(StoreUnavailable):
                return await call()
            await asyncio.sleep(RETRY_SECONDS)
        return await call()
