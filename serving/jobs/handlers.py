"""What a chunk of a job does: predict its rows or explain them, in a process that can be killed.

The runner itself never calls a model. A call that hangs, crashes or eats memory takes down an executor process, which
is forked anew in milliseconds, while the runner goes on with its heartbeats.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import structlog

from registry.errors import ModelNotFound, VersionNotFound
from registry.explain.explanation import Selection
from registry.registry import Registry
from registry.rows.features import Rows
from serving.errors import CallFailed, DeadlineExceeded, MemoryExceeded
from serving.jobs.backend import Backend
from serving.jobs.job import Job
from serving.jobs.rows import RowParameters, parameters_of, unpack
from serving.predict.operation import VERBS, Operation, Verb, encode_rows

log = structlog.get_logger(__name__)

Report = Callable[[float], None]
"""Told how much of the chunk is done, from 0 to 1."""

Handler = Callable[[Job, int, bytes, Report], Awaitable[bytes]]
"""A job, the number of a chunk and its input -> its result. May be cancelled at any time."""

CALL_SECONDS = 1.0
"""Of one call to a model: so that there is progress to tell, and little to do again."""

FIRST_CALL_ROWS = 8


class JobFailed(Exception):
    """The job cannot be done; trying again would not help. The message is for the client."""


class AttemptFailed(Exception):
    """The job was not done this time. The message is for the client."""


def make_row_operations(registry: Registry) -> list[Operation]:
    """All that jobs may ask of models."""
    return [
        Operation(model, verb)
        for model in registry
        for verb in VERBS
        if verb == "predict" or model.explainer is not None
    ]


@dataclass(slots=True)
class Pace:
    """How many rows of an operation to ask for at once."""

    rows: int = FIRST_CALL_ROWS

    def learn(self, rows: int, seconds: float) -> None:
        """So many took so long: as many as fit into CALL_SECONDS, but never more than twice what was tried."""
        self.rows = max(1, min(2 * rows, int(rows * CALL_SECONDS / max(seconds, 1e-6))))


class RowHandler:
    """Answers chunks of rows with the JSON of one answer a row, in order, with commas between them."""

    def __init__(self, registry: Registry, backend: Backend, *, timeout: float) -> None:
        """`backend` can run all of `make_row_operations`; a call may take `timeout` seconds."""
        self._registry = registry
        self._backend = backend
        self._timeout = timeout
        self._paces: dict[str, Pace] = {}

    async def __call__(self, job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        """Raises JobFailed, AttemptFailed, ExecutorGone."""
        parameters = parameters_of(job)
        operation = self._operation(job, parameters)
        rows = unpack(data, len(parameters.features))
        call = _Call(self._backend, operation, parameters.selection(), self._timeout)
        pace = self._paces.setdefault(operation.name, Pace())
        answers: list[bytes] = []
        done = 0
        while done < len(rows):
            part = rows[done : done + pace.rows]
            started = time.perf_counter()
            answers.append(await call.answer(part, chunk * parameters.chunk_rows + done))
            pace.learn(len(part), time.perf_counter() - started)
            done += len(part)
            report(done / len(rows))
        return b",".join(answers)

    def _operation(self, job: Job, parameters: RowParameters) -> Operation:
        try:
            model = self._registry.get(job.model, job.version)
        except (ModelNotFound, VersionNotFound):
            # a runner of another instance, or this one after a reload, may have it
            raise AttemptFailed(f"{job.model}/{job.version} is not loaded") from None
        if model.content_hash.hex() != parameters.content_hash:
            raise JobFailed(f"{job.model}/{job.version} is not what it was when the job was sent")
        return Operation(model, cast("Verb", job.operation))


@dataclass(frozen=True, slots=True)
class _Call:
    backend: Backend
    operation: Operation
    selection: Selection
    timeout: float

    async def answer(self, rows: Rows, first: int) -> bytes:
        """The answers to rows, of which the first is instance `first` of the job.

        Rows that break the model, or are too many for its memory, are halved until those are left that do. So the
        message names the first one, and one that breaks nothing has its answer.
        """
        try:
            payload = encode_rows(rows, self.selection)
            return (await self.backend.run(self.operation, payload, timeout=self.timeout))[1:-1]
        except DeadlineExceeded:
            last = first + len(rows) - 1
            raise AttemptFailed(f"instances {first} to {last} took longer than {self.timeout:g} s") from None
        except (CallFailed, MemoryExceeded) as error:
            if len(rows) == 1:
                log.warning("Row failed", operation=self.operation.name, instance=first, error=str(error))
                raise JobFailed(_blame(error, first)) from error
        half = len(rows) // 2
        return b",".join([await self.answer(rows[:half], first), await self.answer(rows[half:], first + half)])


def _blame(error: Exception, instance: int) -> str:
    what = "needs more memory than it may" if isinstance(error, MemoryExceeded) else "failed"
    return f"the model {what} on instance {instance}"
