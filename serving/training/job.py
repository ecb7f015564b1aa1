"""The job of a retraining: its request, its result, and the file about the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from registry.errors import CannotTrain, VersionRefused
from registry.store.directory import read_json, write_whole
from registry.store.manifest import Manifest
from serving.errors import TrainingBusy
from serving.jobs.job import Job, JobRequest
from serving.jobs.runner import Runner, run_to_end
from serving.jobs.store import JobStore
from serving.storage.background import Recent

OPERATION = "train"
"""Also the mutex: one training at a time over all instances that share a job store, as it takes a whole machine."""

Ending = Literal["promoted", "refused", "failed"]

LAST_FILENAME = "last-training.json"
MAX_LAST_BYTES = 4096

CACHE_SECONDS = 5.0
"""Seconds for which the files about last trainings are not read again."""


class TrainingResult(msgspec.Struct, frozen=True, kw_only=True):
    """The job's result. A version that was refused is not kept."""

    model: str
    version: str
    promoted: bool
    reasons: tuple[str, ...] = ()
    """Why it was not promoted."""
    metrics: dict[str, float]
    live: str
    """The version that it was compared with."""
    live_metrics: dict[str, float]
    held_out_rows: int = 0


def training_request(live: Manifest) -> JobRequest:
    """A job that trains the model whose live version is `live`. Raises CannotTrain if it has no training function."""
    if live.training is None:
        raise CannotTrain(f"{live.name}/{live.version} has no training function; add a version with --train")
    return JobRequest(operation=OPERATION, model=live.name, version=live.version, inputs=[b""], mutex=OPERATION)


async def submit_training(store: JobStore, request: JobRequest) -> Job:
    """Submit a `training_request`, or find the training of the same model that is under way.

    Raises TrainingBusy while another model is trained, QueueFull, StoreUnavailable.
    """
    job = await store.submit(request)
    if job.model != request.model:
        raise TrainingBusy(f"{job.model} is being trained, by job {job.id}; one model is trained at a time")
    return job


def train_once(store: JobStore, runner: Runner, live: Manifest) -> tuple[Job, TrainingResult | None]:
    """Submit a training, run jobs in this process until it has ended or a signal arrives; the job and its result.

    The process must have one thread. Raises CannotTrain, TrainingBusy, QueueFull, StoreUnavailable, JobNotFound.
    """

    async def read() -> bytes | None:
        try:
            return await store.result(job.id, 0)
        finally:
            await store.close()

    request = training_request(live)
    job = run_to_end(store, runner, lambda: submit_training(store, request))
    result = asyncio.run(read()) if job.state == "done" else None
    return job, None if result is None else msgspec.json.decode(result, type=TrainingResult)


class LastTraining(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a model's last training: a small file beside its versions, which outlives the job.

    `version` is the one that was made, empty if none was.
    """

    outcome: Ending
    version: str
    finished: str


def write_last(directory: Path, outcome: Ending, version: str) -> None:
    """Write it into the directory of a model. A failure to write is ignored: the job has its result."""
    last = LastTraining(outcome=outcome, version=version, finished=datetime.now(UTC).isoformat(timespec="seconds"))
    with suppress(OSError):
        write_whole(directory / LAST_FILENAME, msgspec.json.encode(last) + b"\n")


def read_last(directory: Path) -> LastTraining | None:
    """Read it from the directory of a model; None if the model was never trained here, or the file is damaged."""
    try:
        return read_json(directory / LAST_FILENAME, LastTraining, "is damaged", max_bytes=MAX_LAST_BYTES)
    except (FileNotFoundError, VersionRefused):
        return None


def last_trainings(root: Path, names: Collection[str]) -> Recent[dict[str, LastTraining]]:
    """The last trainings by the model's name; models that were never trained here are left out."""

    async def read() -> dict[str, LastTraining]:
        return {name: last for name in names if (last := read_last(root / name)) is not None}

    return Recent(read, CACHE_SECONDS)
