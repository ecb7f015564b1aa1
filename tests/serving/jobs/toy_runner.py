"""A job runner that does nothing of use, for tests that kill it: `python -m tests.serving.jobs.toy_runner`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from serving.jobs.job import Job
from serving.jobs.redis import RedisJobStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.jobs.store import JobStore, new_owner

OPERATIONS = ("toy",)


def open_store(where: str) -> JobStore:
    """Over Redis if `where` is its URL, else in that directory."""
    return RedisJobStore(where, timeout=10.0) if "://" in where else SQLiteJobStore(Path(where), busy_seconds=10.0)


async def work(store: JobStore, job: Job, owner: str, lease: float, hang_at: int) -> None:
    """Do what is missing of a job, or hang for ever when `hang_at` of its chunks are done; stop when it is not ours."""
    for chunk in await store.missing(job.id):
        data = await store.input(job.id, chunk)
        answer = await store.checkpoint(job.id, owner, lease, chunk, data[::-1] + b" by " + owner.encode())
        if answer == "lost":
            return
        if answer == "cancelled":
            await store.release(job.id, owner)
            return
        if (await store.get(job.id)).chunks_done == hang_at:
            await asyncio.Event().wait()
    await store.finish(job.id, owner)


async def run(where: str, lease: float, hang_at: int, jobs: int) -> None:
    """Claim until nothing is due, `jobs` at most, or for ever if that is 0; says each claim on stdout."""
    store, owner = open_store(where), new_owner()
    claimed = 0
    while not jobs or claimed < jobs:
        job = await store.claim(owner, lease, OPERATIONS)
        if job is None:
            if jobs:
                break
            await asyncio.sleep(0.01)
            continue
        claimed += 1
        print(job.id, flush=True)  # noqa: T201 - what the tests listen to
        await work(store, job, owner, lease, hang_at)
    await store.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
