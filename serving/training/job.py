"""The job of a retraining: its request, its result, and the file about the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from registry.errors import CannotTrain, VersionRefused
from registry.store.directory import read_json, write_whole
from registry.store.manifest import Manifest
from serving.errors import StoreUnavailable, TrainingBusy
from serving.jobs.job import Job, JobRequest
from serving.jobs.store import JobStore
from serving.storage.background import Recent

if TYPE_CHECKING:
    from serving.jobs.runner import Runner

T = TypeVar("T")

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
    job = asyncio.run(_once(store, submit_training(store, training_request(live))))

    async def has_ended() -> bool:
        try:
            return (await store.get(job.id)).is_finished
        except StoreUnavailable:
            return False

    async def read() -> tuple[Job, TrainingResult | None]:
        ended = await store.get(job.id)
        result = await store.result(job.id, 0) if ended.state == "done" else None
        return ended, None if result is None else msgspec.json.decode(result, type=TrainingResult)

    runner.run(until=has_ended)
    return asyncio.run(_once(store, read()))


async def _once(store: JobStore, call: Awaitable[T]) -> T:
    """Use the store in an event loop that ends with this call."""
    try:
        return await call
    finally:
        await store.close()


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
