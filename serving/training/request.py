"""The job that a retraining is: one at a time over all instances that share a store of jobs."""

from __future__ import annotations

from registry.errors import CannotTrain
from registry.store.manifest import Manifest
from serving.errors import TrainingBusy
from serving.jobs.job import Job, JobRequest
from serving.jobs.store import JobStore

OPERATION = "train"
MUTEX = "train"
"""One for all models: training takes what memory and processor there are."""


def training_request(live: Manifest) -> JobRequest:
    """For a job that trains the model of which `live` is the live version. Raises CannotTrain if it cannot be."""
    if live.training is None:
        raise CannotTrain(f"{live.name}/{live.version} has no training function; add a version with --train")
    return JobRequest(operation=OPERATION, model=live.name, version=live.version, inputs=[b""], mutex=MUTEX)


async def submit_training(store: JobStore, live: Manifest) -> Job:
    """The job that trains the model of which `live` is the live version, perhaps one that was there before.

    Raises CannotTrain for a model without a training function, TrainingBusy while another model is trained, QueueFull,
    StoreUnavailable.
    """
    job = (await store.submit(training_request(live))).job
    if job.model != live.name:
        raise TrainingBusy(f"{job.model} is being trained, by job {job.id}; one model is at a time")
    return job
