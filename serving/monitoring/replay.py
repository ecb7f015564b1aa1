"""Replay: a job in which a version predicts logged rows, and which says how far it agrees with what was answered.

Context: a version should be judged by the requests of before, which may be a hundred thousand. Decision: each chunk of
the job is a part of the log, named by the ids of its first and last row; a process of low priority, which can be
killed, reads it, predicts and compares. Consequence: no row is kept a second time, what is deleted from the log
meanwhile is not compared, and a runner that is killed loses one chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from registry.errors import ModelNotFound, NotLoaded, VersionNotFound
from registry.model import LoadedModel
from registry.registry import Registry
from serving.errors import (
    CallFailed,
    DeadlineExceeded,
    InvalidRequest,
    JobUnfinished,
    MemoryExceeded,
)
from serving.jobs.attempt import AttemptFailed, JobFailed, Report
from serving.jobs.job import Job, JobRequest
from serving.jobs.requests import CheckModel
from serving.jobs.results import whole_result
from serving.jobs.runner import Runner, run_to_end
from serving.jobs.store import JobStore
from serving.monitoring.agreement import TOLERANCE, Agreement, Given, compare
from serving.monitoring.predictions.store import LoggedPrediction, PredictionStore, Wanted, pages
from serving.predict.json_body import decode
from serving.process.executor import Executor, Function

OPERATION = "replay"

JUST_AFTER = "g"
"""Behind an id, which is hexadecimal: comes right after it."""

USAGE = 'send an object: {"operation": "replay", "model": "...", "version": "...", "parameters": {"last": 1000}}'

MAX_BODY_BYTES = 4096

DEFAULT_ROWS = 10_000
MAX_ROWS = 1_000_000


class ReplayParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which rows of the log are replayed: the latest ones, at most `last`, and none before `since`."""

    last: Annotated[int, Meta(ge=1, le=MAX_ROWS)] | None = None
    """By default DEFAULT_ROWS, or all since a time that is given."""
    since: datetime | None = None
    """With its time zone; without one it is UTC."""
    tolerance: Annotated[float, Meta(ge=0)] = TOLERANCE


class ReplayBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON body of a request for a replay."""

    operation: str
    model: str
    version: str
    parameters: ReplayParameters | None = None


class ReplayedPart(msgspec.Struct, frozen=True):
    """A chunk: the rows of the log from the id `first` back to `last`, newest first."""

    model: str
    version: str
    """The candidate."""
    wanted: str | None
    """Only rows that this version has answered; None for those of all others than the candidate."""
    tolerance: float
    first: str
    last: str
    rows: int


class _Head(msgspec.Struct):
    operation: Any = None


_head = msgspec.json.Decoder(_Head)
_body = msgspec.json.Decoder(ReplayBody)


def is_replay(body: bytes) -> bool:
    """Whether the JSON body of a request for a job asks for a replay; one that is no JSON does not."""
    if len(body) > MAX_BODY_BYTES or b'"replay"' not in body:
        return False
    try:
        return bool(_head.decode(body).operation == OPERATION)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


async def read_replay(registry: Registry, log: PredictionStore, body: bytes, key: str, check: CheckModel) -> JobRequest:
    """The job of such a body; `key` is the client's idempotency key, or empty; `check` refuses a model's name.

    Raises InvalidRequest, and what `replay_request` raises.
    """
    asked = decode(_body, body, USAGE)
    check(asked.model)
    request = await replay_request(registry, log, asked.model, asked.version, asked.parameters or ReplayParameters())
    return replace(request, idempotency_key=hashlib.sha256(key.encode()).hexdigest() if key else "")


async def replay_request(
    registry: Registry, log: PredictionStore, name: str, version: str, asked: ReplayParameters
) -> JobRequest:
    """A job that replays logged predictions of a model on one of its versions.

    They are those of the live version; where the candidate is live itself, those of all other versions. Raises
    ModelNotFound, VersionNotFound, NotLoaded, StoreUnavailable, and InvalidRequest if nothing is logged.
    """
    candidate = registry.get(name, version)
    live = registry.aliases(name).live
    wanted = None if live == version else live
    since = asked.since if asked.since is None or asked.since.tzinfo else asked.since.replace(tzinfo=UTC)
    limit = asked.last or (MAX_ROWS if since else DEFAULT_ROWS)
    logged = Wanted(model=name, version=wanted, verb="predict", since=since)
    inputs = [
        msgspec.json.encode(
            ReplayedPart(name, version, wanted, asked.tolerance, page[0].id, page[-1].id, rows=len(page))
        )
        async for page in pages(log, logged, limit)
        if any(one.version != version for one in page)
    ]
    if not inputs:
        whose = f"version {wanted}" if wanted else "another version"
        raise InvalidRequest(f"no prediction of {whose} of {name} is logged; see LOG_PREDICTIONS")
    return JobRequest(
        operation=OPERATION,
        model=name,
        version=version,
        parameters=msgspec.json.encode({"content_hash": candidate.content_hash.hex()}),
        inputs=inputs,
    )


async def replay_result(store: JobStore, job: Job) -> Agreement:
    """How far the candidate of a job that is done agrees. Raises JobNotFound, StoreUnavailable."""
    found = Agreement()
    async for chunk in whole_result(store, job):
        found.add(msgspec.json.decode(chunk, type=Agreement))
    return found


def show_replay(job: Job, found: Agreement) -> dict[str, Any]:
    """The result as JSON."""
    return {"model": job.model, "version": job.version, **found.shown()}


def replay_functions(registry: Registry, log: PredictionStore) -> dict[str, Function]:
    """What an executor runs for the jobs of a `ReplayHandler`."""
    return {OPERATION: lambda payload: msgspec.json.encode(_replay(registry.get, log, payload))}


async def agree_with_log(
    candidate: LoadedModel, version: str, log: PredictionStore, rows: int = DEFAULT_ROWS
) -> Agreement:
    """How far a candidate agrees with the latest predictions of a version that are logged, without a job.

    It runs foreign code, in the event loop of a forked process, and leaves nothing open there. Raises StoreUnavailable.
    """
    found = Agreement()
    try:
        async for page in pages(log, Wanted(model=candidate.name, version=version, verb="predict"), rows):
            found.add(compare(candidate, _given(page), TOLERANCE))
    finally:
        await log.close()
    return found


def _given(logged: Sequence[LoggedPrediction]) -> list[Given]:
    """The rows that have an answer."""
    return [
        Given(one.row, one.answer, one.version, one.request_id, one.place) for one in logged if one.answer is not None
    ]


def _replay(find: Callable[[str, str], LoadedModel], log: PredictionStore, payload: bytes) -> Agreement:
    part = msgspec.json.decode(payload, type=ReplayedPart)
    logged = asyncio.run(_read(log, part))
    wanted = [one for one in logged if one.version != part.version and one.id >= part.last]
    return compare(find(part.model, part.version), _given(wanted), part.tolerance)


async def _read(log: PredictionStore, part: ReplayedPart) -> list[LoggedPrediction]:
    """In a forked process, in an event loop of its own; leaves nothing open there."""
    try:
        wanted = Wanted(model=part.model, version=part.wanted, verb="predict")
        return await log.find(wanted, part.rows, f"{part.first}{JUST_AFTER}")
    finally:
        await log.close()


@dataclass(frozen=True)
class ReplayHandler:
    """Works on jobs that replay; `executor` runs `replay_functions`, each call at most `timeout` seconds."""

    registry: Registry
    executor: Executor
    timeout: float

    async def __call__(self, job: Job, chunk: int, data: bytes, _report: Report) -> bytes:
        """The Agreement over a chunk as JSON. Raises JobFailed, AttemptFailed, ExecutorGone."""
        try:
            candidate = self.registry.get(job.model, job.version)
        except (ModelNotFound, VersionNotFound, NotLoaded):
            # a runner of another instance, or this one after a reload, may have it
            raise AttemptFailed(f"{job.model}/{job.version} is not loaded") from None
        if candidate.content_hash.hex() != msgspec.json.decode(job.parameters)["content_hash"]:
            raise JobFailed(f"{job.model}/{job.version} has changed since the job was submitted")
        where = f"{job.model}/{job.version}, part {chunk + 1} of {job.chunks}"
        try:
            return await self.executor.run(OPERATION, data, timeout=self.timeout)
        except DeadlineExceeded:
            raise AttemptFailed(f"{where}: the model took longer than {self.timeout:g} s") from None
        except MemoryExceeded:
            raise JobFailed(f"{where}: the model needs more memory than is allowed") from None
        except CallFailed as error:
            raise AttemptFailed(f"{where}: {error}") from error


def replay_once(
    store: JobStore,
    log: PredictionStore,
    runner: Runner,
    registry: Registry,
    candidate: LoadedModel,
    asked: ReplayParameters,
) -> Agreement:
    """Submit a replay and run it in this process until it has ended or a signal arrives. The process has one thread.

    Raises InvalidRequest, QueueFull, StoreUnavailable, JobNotFound, and JobUnfinished if there is no result.
    """

    async def submit() -> Job:
        try:
            return await store.submit(await replay_request(registry, log, candidate.name, candidate.version, asked))
        finally:
            await log.close()

    async def read() -> Agreement:
        try:
            return await replay_result(store, ended)
        finally:
            await store.close()

    ended = run_to_end(store, runner, submit)
    if ended.state != "done":
        raise JobUnfinished(f"job {ended.id} is {ended.state}{f': {ended.error}' if ended.error else ''}")
    return asyncio.run(read())
