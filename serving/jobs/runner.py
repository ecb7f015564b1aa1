"""A runner: a process that claims jobs and works on them, one at a time, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog

from serving.errors import ExecutorGone, ServingError, StoreUnavailable
from serving.events.log import EventLog
from serving.jobs.attempt import Attempt, AttemptOutcome, Handler
from serving.jobs.job import Job
from serving.jobs.rows import Backend
from serving.jobs.store import JobStore, new_owner
from serving.process.executor import Executor
from serving.process.kernel import child_pids, read_memory
from serving.shared.metrics import JobCounters

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
"""Between looks for a job; one costs 0.3 ms."""

AWAY_SECONDS = 2.0
"""Between looks while the store is away."""

PRUNE_SECONDS = 60.0


Until = Callable[[], Awaitable[bool]]


async def at_once() -> bool:
    """For a runner that ends as soon as no job is due."""
    return True


class Runner:
    """Built before the fork; `run` is all that its process does."""

    def __init__(
        self,
        store: JobStore,
        events: EventLog,
        handlers: Mapping[str, Handler],
        executors: Sequence[Executor],
        backend: Backend,
        *,
        figures: JobCounters,
        lease_seconds: float,
        keep_seconds: float,
        keep_jobs: int,
    ) -> None:
        """`handlers` by operation: no other jobs are claimed. `executors` are theirs; the runner starts and stops them.
        `backend` is where rows are computed, an executor or beyond; the runner closes it.

        Finished jobs and events are forgotten after `keep_seconds`, and all but the last `keep_jobs` jobs.
        """
        self._store = store
        self._events = events
        self._handlers = handlers
        self._executors = tuple(executors)
        self._figures = figures
        self._backend = backend
        self._lease_seconds = lease_seconds
        self._keep_seconds = keep_seconds
        self._keep_jobs = keep_jobs
        self._next_prune = 0.0
        self._is_away = False

    def run(self, *, until: Until | None = None) -> None:
        """Work until SIGTERM or SIGINT, or until no job is due and `until` says that this is enough.

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
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        owner = new_owner()
        log.info("Runner works", pid=os.getpid(), owner=owner)
        while not stopping.is_set() and all(executor.reason_to_replace() is None for executor in self._executors):
            job = await self._claim(owner)
            if job is not None:
                await self._work(job, owner, stopping)
            elif until is not None and await until():
                break
            else:
                await self._rest(stopping)
        await self._backend.close()
        await self._store.close()
        await self._events.close()
        log.info("Runner ends", pid=os.getpid())

    async def _claim(self, owner: str) -> Job | None:
        """The next job, if there is one; old ones are pruned now and then. An outage is said once."""
        try:
            if time.monotonic() >= self._next_prune:
                await self._prune()
            job = await self._store.claim(owner, self._lease_seconds, list(self._handlers))
        except StoreUnavailable as error:
            if not self._is_away:
                log.warning("Jobs are out of reach", error=str(error))
            self._is_away = True
            return None
        if self._is_away:
            log.info("Jobs are within reach again")
        self._is_away = False
        return job

    async def _prune(self) -> None:
        self._next_prune = time.monotonic() + PRUNE_SECONDS
        jobs = 0
        while removed := await self._store.prune(self._keep_seconds, self._keep_jobs):
            jobs += removed
        events = await self._events.prune(self._keep_seconds)
        if jobs or events:
            log.info("Old jobs and events are gone", jobs=jobs, events=events)

    async def _rest(self, stopping: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(AWAY_SECONDS if self._is_away else POLL_SECONDS):
                await stopping.wait()

    async def _work(self, job: Job, owner: str, stopping: asyncio.Event) -> None:
        said = partial(log.info, job=job.id, operation=job.operation, model=job.model, version=job.version)
        before, started = _private_bytes(), time.monotonic()
        said("Job begins", attempt=job.attempts, chunks=job.chunks, chunks_done=job.chunks_done, private_bytes=before)
        attempt = Attempt(
            self._store,
            job,
            owner=owner,
            lease=self._lease_seconds,
            chunks_at_once=self._backend.at_once,
        )
        outcome: AttemptOutcome | str
        try:
            outcome = await attempt.run(self._handlers[job.operation], stopping)
        except ExecutorGone:
            outcome = "released"
            with suppress(StoreUnavailable):
                await attempt.release()
        except ServingError as error:
            # the store is away, or the job's rows are gone: the lease runs out by itself
            outcome = f"left: {error}"
        seconds = time.monotonic() - started
        replacements = sum(executor.replacements for executor in self._executors)
        self._figures.ended(outcome.partition(":")[0], replacements)
        said(f"Job {outcome} after {seconds:.3f}s", private_bytes=_private_bytes(), private_bytes_before=before)


def _private_bytes() -> int | None:
    """Of this process and those that it has forked; None where the kernel does not tell."""
    total, pids = 0, [os.getpid()]
    try:
        while pids:
            pid = pids.pop()
            total += read_memory(pid).private
            pids += child_pids(pid)
    except OSError:
        return None
    return total
