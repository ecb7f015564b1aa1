"""What keeps jobs: a table of leases, so that whoever dies loses a little time and no work.

A runner claims a job and gets a lease with it, renews the lease with every heartbeat and every finished chunk, and is
told in return whether the job is still its own. When it dies, even by SIGKILL, its lease runs out and another runner
goes on with the chunks that are missing.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from serving.jobs.job import Counts, Firing, Job, JobRequest, Lease, ScheduleRecord, Submitted

MAX_QUEUED = 1000
RETRY_AFTER_SECONDS = 10.0
PRUNE_AT_ONCE = 500

LOST = "lost with its runner"
"""The error of a job whose lease has run out; the owner's name follows it, which is for the log and not for clients."""

REQUEST_FIELDS = (
    "operation",
    "model",
    "version",
    "parameters",
    "max_attempts",
    "unique_key",
    "idempotency_key",
    "mutex",
)
"""Of a JobRequest, as they are kept."""


class JobStore(Protocol):
    """Shared by all processes, and with Redis by all instances. Every method raises StoreUnavailable."""

    async def submit(self, request: JobRequest) -> Submitted:
        """Queue a job, or find the one that a key or the mutex of the request belongs to. Raises QueueFull."""
        ...

    async def claim(self, owner: str, lease_seconds: float, operations: Sequence[str]) -> Job | None:
        """The job of these operations that has been due for longest, now running and leased to `owner`.

        Jobs whose lease has run out are queued again first; one that has done so without a new chunk in all of its
        attempts has failed. Not safe to be repeated: a claim whose answer is lost runs out by itself.
        """
        ...

    async def heartbeat(self, job_id: str, owner: str, lease_seconds: float, progress: float = 0.0) -> Lease:
        """Renew the lease; the job's progress never goes back."""
        ...

    async def checkpoint(self, job_id: str, owner: str, lease_seconds: float, chunk: int, result: bytes) -> Lease:
        """Keep a chunk's result and renew the lease, in one step.

        The first result of a chunk is the one that is kept. Nothing is kept for an owner that has lost the lease.
        Raises ValueError if the job has no such chunk.
        """
        ...

    async def finish(self, job_id: str, owner: str) -> Job | None:
        """The job is done, even if it was cancelled meanwhile; None if the lease was lost.

        Raises ValueError while chunks are missing.
        """
        ...

    async def fail(self, job_id: str, owner: str, error: str, *, permanent: bool = False) -> Job | None:
        """The attempt failed: the job is queued again for later, or has failed for good; None if the lease was lost."""
        ...

    async def release(self, job_id: str, owner: str) -> Job | None:
        """Give a job back, finished chunks and all, for another runner to go on with; None if the lease was lost.

        A job that is being cancelled is cancelled by this.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, a running one with its owner's next heartbeat. Raises JobNotFound.

        A running job keeps its mutex until its owner has let go of it.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        ...

    async def input(self, job_id: str, chunk: int) -> bytes:
        """The input of one chunk; there is none any more when the job is finished. Raises JobNotFound."""
        ...

    async def missing(self, job_id: str) -> list[int]:
        """The chunks without a result, in order. Raises JobNotFound."""
        ...

    async def result(self, job_id: str, chunk: int) -> bytes | None:
        """The result of one chunk, or None."""
        ...

    async def counts(self) -> Counts:
        """For metrics."""
        ...

    async def probe(self) -> None:
        """Raises StoreUnavailable if no job could be submitted now, also where jobs can still be read."""
        ...

    async def schedules(self) -> Mapping[str, ScheduleRecord]:
        """The records of all schedules, by name."""
        ...

    async def fire(self, firing: Firing) -> ScheduleRecord | None:
        """Settle the firings of a schedule and submit the job, in one step; the new record.

        None, and nothing is done, if the last firing is not the one that was `seen`: another scheduler was first. Only
        the latest job of a schedule is kept: the one before is removed if it is finished. Raises QueueFull.
        """
        ...

    async def prune(self, older_than: float, keep: int) -> int:
        """Remove finished jobs that ended more than `older_than` seconds ago, and all but the `keep` last ones.

        Returns how many, at most 500 at a time so that nobody waits for long.
        """
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


async def results(store: JobStore, job: Job) -> AsyncIterator[bytes]:
    """The results of a job's chunks in order, one at a time in memory, up to the first that is missing."""
    for chunk in range(job.chunks):
        result = await store.result(job.id, chunk)
        if result is None:
            return
        yield result


def end_event(job: Job) -> bytes:
    """The data of the event that says how a job has ended."""
    error = public_error(job) if job.state == "failed" else ""
    return msgspec.json.encode({"state": job.state, "error": error})


def public_error(job: Job) -> str:
    """The job's error as clients see it: without the name of a lease owner."""
    return LOST if job.error.startswith(LOST) else job.error


def new_owner() -> str:
    """A lease owner that no process has been or will be again: `host:pid:milliseconds:random`."""
    return f"{socket.gethostname()}:{os.getpid()}:{int(time.time() * 1000)}:{secrets.token_hex(8)}"
