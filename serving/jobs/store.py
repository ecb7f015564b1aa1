"""The store of jobs: a table of leases, so that a runner that dies loses a little time and no work.

A runner claims a job and gets a lease with it. Every heartbeat and every finished chunk renews the lease and says
whether the runner still holds it. When a runner dies, even by SIGKILL, its lease runs out and another runner continues
with the missing chunks.

A job's change and the event that reports it to clients are one transaction: `chunk` for a kept chunk, `progress` for a
heartbeat with news, and exactly one of `done`, `failed` and `cancelled` when the job ends.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from serving.jobs.job import Counts, Firing, Job, JobRequest, Lease, ScheduleRecord

RETRY_AFTER_SECONDS = 10.0
"""When a client whose job was refused may try again."""
PRUNE_AT_ONCE = 500

LOST = "lost with its runner"
"""The error of a job whose lease has run out. The owner's name follows it, which clients do not see."""

KEPT_FIELDS = (
    *("operation", "model", "version", "parameters", "max_attempts"),
    *("unique_key", "idempotency_key", "mutex", "client", "account"),
)
"""The fields of a JobRequest that are kept as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """The jobs that may wait, and the bytes of the inputs of all that have not ended: in all, and of one account."""

    jobs: int = 1000
    jobs_of_account: int = 0
    """0 sets no limit of its own."""
    bytes: int = 512 * 1024 * 1024
    bytes_of_account: int = 0
    """0 sets no limit of its own."""

    def of_account(self) -> tuple[int, int]:
        """The jobs and the bytes of one account."""
        return self.jobs_of_account or self.jobs, min(self.bytes_of_account or self.bytes, self.bytes)


TOO_MANY_JOBS = "too many jobs are waiting"
TOO_MANY_OF_ACCOUNT = "too many jobs of this client are waiting"
TOO_MANY_BYTES = "the rows of waiting jobs take as many bytes as they may"
TOO_MANY_BYTES_OF_ACCOUNT = "the rows of this client's waiting jobs take as many bytes as they may"


class JobStore(Protocol):
    """Shared by all processes, and with Redis by all instances. Every method raises StoreUnavailable."""

    async def submit(self, request: JobRequest) -> Job:
        """Queue a job and return it, or find the job that holds a key or the mutex of the request. Raises QueueFull."""
        ...

    async def claim(self, owner: str, lease_seconds: float, operations: Sequence[str]) -> Job | None:
        """Lease to `owner` the job of these operations that has been due longest, if there is one; it runs then.

        Before that, jobs whose lease has run out are queued again; those that have used up their attempts without a
        new chunk fail. A claim must not be repeated: when its answer is lost, the lease runs out by itself.
        """
        ...

    async def heartbeat(self, job_id: str, owner: str, lease_seconds: float, progress: float = 0.0) -> Lease:
        """Renew the lease and raise the job's progress, which never goes back."""
        ...

    async def checkpoint(self, job_id: str, owner: str, lease_seconds: float, chunk: int, result: bytes) -> Lease:
        """Keep a chunk's result and renew the lease, in one step.

        Only the first result of a chunk is kept, and none of an owner that has lost the lease.
        Raises ValueError if the job has no such chunk.
        """
        ...

    async def finish(self, job_id: str, owner: str) -> Job | None:
        """Mark the job as done, even if it was cancelled meanwhile; None if the lease was lost.

        Raises ValueError while chunks are missing.
        """
        ...

    async def fail(self, job_id: str, owner: str, error: str, *, permanent: bool = False) -> Job | None:
        """End a failed attempt: the job is queued for a retry or fails for good; None if the lease was lost."""
        ...

    async def release(self, job_id: str, owner: str) -> Job | None:
        """Give the job back so that another runner can continue it; None if the lease was lost.

        If the job is being cancelled, this cancels it.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, and a running job with its owner's next heartbeat. Raises JobNotFound.

        A running job keeps its mutex until its owner releases it.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Return the job. Raises JobNotFound."""
        ...

    async def input(self, job_id: str, chunk: int) -> bytes:
        """Return the input of one chunk, which is kept until the job has ended. Raises JobNotFound."""
        ...

    async def missing(self, job_id: str) -> list[int]:
        """Return the numbers of the chunks without a result, in order. Raises JobNotFound."""
        ...

    async def result(self, job_id: str, chunk: int) -> bytes | None:
        """Return the result of one chunk, or None."""
        ...

    async def delete_of(self, client: str) -> list[str]:
        """Delete all jobs of a client, the name of a key, whatever their state, with rows and results; their ids.

        A runner that works on one of them learns that it has lost it.
        """
        ...

    async def counts(self) -> Counts:
        """Count the jobs by state, for metrics."""
        ...

    async def probe(self) -> None:
        """Raise StoreUnavailable if no job could be submitted now, even if jobs can be read."""
        ...

    async def risk(self) -> str | None:
        """Return why this store may lose jobs that it has accepted, or None. To be called every minute."""
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

    async def pause(self, schedule: str, *, paused: bool) -> ScheduleRecord:
        """Keep whether a schedule is paused; the new record, which counts from now if there was none."""
        ...

    async def prune(self, older_than: float, keep: int, keep_bytes: int) -> int:
        """Remove jobs that ended `older_than` seconds ago, and those beyond `keep`, or `keep_bytes` of results.

        Of these the oldest goes first of the account that has the most, so that none displaces what is kept for another
        that has less. Returns how many were removed: at most PRUNE_AT_ONCE, so that other calls do not wait long.
        """
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


def end_event(job: Job) -> bytes:
    """Return the data of the event that says how a job has ended."""
    error = public_error(job) if job.state == "failed" else ""
    return msgspec.json.encode({"state": job.state, "error": error})


def public_error(job: Job) -> str:
    """Return the job's error as clients see it: without the name of a lease owner."""
    return LOST if job.error.startswith(LOST) else job.error


def new_owner() -> str:
    """Return the name of a lease owner, `host:pid:milliseconds:random`, which no other process ever has."""
    return f"{socket.gethostname()}:{os.getpid()}:{int(time.time() * 1000)}:{secrets.token_hex(8)}"
