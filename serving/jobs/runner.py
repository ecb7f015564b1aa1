"""A runner: a process that claims jobs and works on them, one at a time, until it is stopped."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from serving.errors import ExecutorGone, ServingError, StoreUnavailable
from serving.events.log import EventLog
from serving.jobs.attempt import Attempt, AttemptOutcome, Handler
from serving.jobs.job import Job
from serving.jobs.rows import Backend
from serving.jobs.store import JobStore, new_owner
from serving.process.child import ending_event
from serving.process.executor import Executor
from serving.process.kernel import descendants, read_memory
from serving.shared.metrics import Metrics

if TYPE_CHECKING:
    from serving.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
"""Between attempts to claim a job; one costs 0.3 ms."""

RETRY_SECONDS = 2.0
"""Between attempts to claim a job while the store is unavailable."""

PRUNE_SECONDS = 60.0
"""Between removals of old jobs and events, and looks for what may lose jobs."""

Until = Callable[[], Awaitable[bool]]


async def immediately() -> bool:
    """Lets a runner end as soon as no job is due."""
    return True


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The duration of leases, and the age, the number and the results of finished jobs to keep."""

    lease_seconds: float
    keep_seconds: float
    """Events are kept as long."""
    keep_jobs: int
    keep_bytes: int
    """Of their results."""


class Runner:
    """Built before the fork; `run` is all that its process does."""

    def __init__(
        self,
        store: JobStore,
        events: EventLog,
        handlers: Mapping[str, Handler],
        executors: Sequence[Executor],
        limits: JobLimits,
        *,
        metrics: Metrics,
        backend: Backend | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`handlers` by operation; other jobs are not claimed. The runner starts and stops their `executors`, and
        closes the `backend` of rows, if it has one.
        """
        self._store = store
        self._events = events
        self._handlers = handlers
        self._executors = tuple(executors)
        self._limits = limits
        self._metrics = metrics
        self._backend = backend
        self._tracing = tracing
        self._next_prune = 0.0
        self._is_unavailable = False
        self._risk: str | None = None

    def run(self, *, until: Until | None = None) -> None:
        """Work until SIGTERM or SIGINT, or until no job is due and `until` returns True.

        The process must have one thread.
        """
        for executor in self._executors:
            executor.start()
        try:
            asyncio.run(self._serve(until))
        finally:
            for executor in self._executors:
                executor.stop()

    async def _serve(self, until: Until | None) -> None:
        stopping = ending_event()
        owner = new_owner()
        if self._tracing is not None:
            self._tracing.start()
        log.info("Runner started", pid=os.getpid(), owner=owner)
        while not stopping.is_set() and all(executor.reason_to_replace() is None for executor in self._executors):
            job = await self._claim(owner)
            if job is not None:
                with self._traced(job):
                    await self._work(job, owner, stopping)
            elif until is not None and await until():
                break
            else:
                await self._rest(stopping)
        if self._backend is not None:
            await self._backend.close()
        await self._store.close()
        await self._events.close()
        if self._tracing is not None:
            await self._tracing.stop()
        log.info("Runner stopped", pid=os.getpid())

    def _traced(self, job: Job) -> AbstractContextManager[None]:
        """A span around an attempt at a job, if traces are sent."""
        if self._tracing is None:
            return nullcontext()
        attributes: dict[str, str | int] = {"forkserve.job": job.id, "forkserve.attempt": job.attempts}
        if job.model:
            attributes |= {"forkserve.model": job.model, "forkserve.version": job.version}
        return self._tracing.work(f"job {job.operation}", attributes)

    async def _claim(self, owner: str) -> Job | None:
        """The next job, if one is due, after old jobs were pruned from time to time. An outage is logged once."""
        try:
            if time.monotonic() >= self._next_prune:
                await self._prune()
            job = await self._store.claim(owner, self._limits.lease_seconds, list(self._handlers))
        except StoreUnavailable as error:
            if not self._is_unavailable:
                log.warning("Job store unavailable", error=str(error))
            self._is_unavailable = True
            return None
        if self._is_unavailable:
            log.info("Job store available again")
        self._is_unavailable = False
        return job

    async def _check_store(self) -> None:
        """Warn of a store that may lose jobs, once for each reason."""
        risk = await self._store.risk()
        if risk not in (None, self._risk):
            log.warning("Accepted jobs may be lost", reason=risk)
        self._risk = risk

    async def _prune(self) -> None:
        await self._check_store()
        self._next_prune = time.monotonic() + PRUNE_SECONDS
        jobs = 0
        limits = self._limits
        while removed := await self._store.prune(limits.keep_seconds, limits.keep_jobs, limits.keep_bytes):
            jobs += removed
        events = await self._events.prune(limits.keep_seconds)
        if jobs or events:
            log.info("Old jobs and events removed", jobs=jobs, events=events)

    async def _rest(self, stopping: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS if self._is_unavailable else POLL_SECONDS):
                await stopping.wait()

    async def _work(self, job: Job, owner: str, stopping: asyncio.Event) -> None:
        say = partial(log.info, job=job.id, operation=job.operation, model=job.model, version=job.version)
        before, started = _private_bytes(), time.monotonic()
        say("Job started", attempt=job.attempts, chunks=job.chunks, chunks_done=job.chunks_done, private_bytes=before)
        at_once = 1 if self._backend is None else self._backend.at_once
        attempt = Attempt(self._store, job, owner=owner, lease=self._limits.lease_seconds, chunks_at_once=at_once)
        outcome: AttemptOutcome | str
        try:
            outcome = await attempt.run(self._handlers[job.operation], stopping)
        except ExecutorGone:
            outcome = "released"
            with suppress(StoreUnavailable):
                await attempt.release()
        except ServingError as error:
            # the store is unavailable, or the job was removed: the lease expires by itself
            outcome = f"left: {error}"
        seconds = time.monotonic() - started
        replacements = sum(executor.replacements for executor in self._executors)
        self._metrics.count_attempt(outcome.partition(":")[0], replacements)
        say(f"Job {outcome} after {seconds:.3f}s", private_bytes=_private_bytes(), private_bytes_before=before)


def _private_bytes() -> int | None:
    """Private memory of this process and its descendants; None where the kernel does not say."""
    try:
        return sum(read_memory(pid).private for pid in (os.getpid(), *descendants(os.getpid())))
    except OSError:
        return None


def run_to_end(store: JobStore, runner: Runner, submit: Callable[[], Awaitable[Job]]) -> Job:
    """Submit a job, and run jobs in this process until it has ended or a signal arrives; the job then.

    The process must have one thread. Raises what `submit` raises, StoreUnavailable, JobNotFound.
    """

    async def in_a_loop(call: Callable[[], Awaitable[Job]]) -> Job:
        try:
            return await call()
        finally:
            await store.close()

    job = asyncio.run(in_a_loop(submit))

    async def has_ended() -> bool:
        try:
            return (await store.get(job.id)).is_finished
        except StoreUnavailable:
            return False

    runner.run(until=has_ended)
    return asyncio.run(in_a_loop(partial(store.get, job.id)))
