"""A retraining from the command line: submitted like any other, worked on in this process, and waited for."""

from __future__ import annotations

import asyncio

import msgspec

from registry.store.manifest import Manifest
from serving.errors import StoreUnavailable
from serving.jobs.job import Job
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.training.handler import TrainingResult
from serving.training.request import submit_training


def train_once(store: JobStore, runner: Runner, live: Manifest) -> tuple[Job, TrainingResult | None]:
    """The job when it has ended, whoever has worked on it, or this process was told to stop; its result if it is done.

    The process must have one thread. Raises CannotTrain, TrainingBusy, QueueFull, StoreUnavailable, JobNotFound.
    """
    job = asyncio.run(_submit(store, live))

    async def has_ended() -> bool:
        try:
            return (await store.get(job.id)).is_finished
        except StoreUnavailable:
            return False

    runner.run(until=has_ended)
    return asyncio.run(_outcome(store, job.id))


async def _submit(store: JobStore, live: Manifest) -> Job:
    try:
        return await submit_training(store, live)
    finally:
        await store.close()


async def _outcome(store: JobStore, job_id: str) -> tuple[Job, TrainingResult | None]:
    try:
        job = await store.get(job_id)
        result = await store.result(job_id, 0) if job.state == "done" else None
    finally:
        await store.close()
    return job, None if result is None else msgspec.json.decode(result, type=TrainingResult)
