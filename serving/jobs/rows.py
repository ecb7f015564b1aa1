"""Jobs over rows: how rows are stored chunk by chunk, which backend computes them, and the handler that calls it.

A chunk is stored as the bytes of its float64 rows, little endian, one row after the other, or as MessagePack if they
hold texts: what was validated when the job was submitted is not validated again, and a value keeps every bit. A runner
itself never calls a model: a call that hangs, crashes or eats memory takes down an executor process, which is forked
anew in milliseconds, while the runner goes on with its heartbeats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import structlog

from registry.errors import ModelNotFound, NotLoaded, ResultNotFinite, VersionNotFound
from registry.explain.explanation import OTHER, Selection
from registry.explain.importance import Importance, of_all_classes
from registry.explain.shap_values import Space
from registry.model import LoadedModel
from registry.outputs import Label, Part, Target
from registry.registry import Registry
from registry.rows.features import Rows
from registry.rows.schema import Schema
from serving.errors import CallFailed, DeadlineExceeded, MemoryExceeded
from serving.jobs.attempt import AttemptFailed, JobFailed, Report
from serving.jobs.job import Job
from serving.predict.cost import Cost
from serving.predict.operation import VERBS, Operation, Verb, encode_rows
from serving.process.executor import Executor

log = structlog.get_logger(__name__)

IMPORTANCE = "importance"
"""The operation of jobs whose explanations are summed up when their result is fetched."""

OPERATIONS: Mapping[str, Verb] = {**{verb: verb for verb in VERBS}, IMPORTANCE: "explain"}
"""What a model is asked for by each operation over rows."""

CALL_SECONDS = 1.0
"""Intended duration of one call to a model: short, so that there is progress to report and little to repeat."""


class RowParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parameters of a job over rows.

    They include names, so that a result can be rendered as a table when the version is no longer loaded.
    """

    content_hash: str
    rows: int
    chunk_rows: int
    features: tuple[str, ...]
    labels: tuple[str, ...]
    classes: str | tuple[Label, ...]
    top: int | None
    space: Space | None = None
    coverage: float | None = None
    interactions: bool = False
    targets: tuple[Target, ...] = ()
    parts: tuple[Part, ...] = ()
    """The layout of the model's outputs; empty for jobs that were submitted before there were layouts."""
    shown: tuple[str, ...] = ()
    """The names in explanations, if they are not those of the features."""

    def selection(self) -> Selection:
        """What is to be shown."""
        names = ("classes", "top", "space", "coverage", "interactions")
        return msgspec.convert({name: getattr(self, name) for name in names}, Selection)

    def explained_columns(self) -> tuple[str, ...]:
        """The columns of explanations as a table: the features, and one for those that are not included."""
        shown = self.shown or self.features
        return shown if self.top is None else tuple(dict.fromkeys((*shown, OTHER)))


def describe_rows(model: LoadedModel, selection: Selection, rows: int, chunk_rows: int) -> RowParameters:
    """The parameters of a job that asks `model` about so many rows."""
    return RowParameters(
        content_hash=model.content_hash.hex(),
        rows=rows,
        chunk_rows=chunk_rows,
        features=model.schema.names,
        labels=model.labels.texts,
        classes=selection.classes,
        top=selection.top,
        space=selection.space,
        coverage=selection.coverage,
        interactions=selection.interactions,
        targets=model.layout.targets,
        parts=model.layout.parts,
        shown=tuple(model.names.shown()) if model.manifest.groups else (),
    )


def parameters_of(job: Job) -> RowParameters:
    """The parameters of a job over rows."""
    return msgspec.json.decode(job.parameters, type=RowParameters)


def pack(rows: Rows) -> bytes:
    """Rows of shape (rows, features) as they are stored."""
    return (
        msgspec.msgpack.encode(rows.tolist()) if rows.dtype == object else np.ascontiguousarray(rows, "<f8").tobytes()
    )


def unpack(content: bytes, schema: Schema) -> Rows:
    """The rows of `pack`, shape (rows, features)."""
    if schema.has_text:
        return np.array(msgspec.msgpack.decode(content), dtype=object)
    return np.frombuffer(content, "<f8").reshape(-1, len(schema))


class Backend(Protocol):
    """Runs operations for one runner, on its event loop."""

    at_once: int
    """Chunks of a job to work on at the same time."""

    async def run(self, operation: Operation, payload: bytes, /, *, timeout: float) -> bytes:
        """The JSON array of one answer a row, for a payload of `encode_rows`, within `timeout` seconds.

        Raises DeadlineExceeded, CallFailed, MemoryExceeded, ExecutorGone. May be cancelled at any time.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class LocalBackend:
    """Runs one call after the other in the runner's executor processes."""

    at_once = 1

    def __init__(self, executor: Executor) -> None:
        """`executor` has all operations under their names; the runner starts it."""
        self._executor = executor

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:
        return await self._executor.run(operation.name, payload, timeout=timeout)

    async def close(self) -> None: ...


class RowHandler:
    """Answers chunks of rows with the JSON of one answer a row, in order, with commas between them, or sums them up."""

    def __init__(self, registry: Registry, backend: Backend, *, timeout: float) -> None:
        """`backend` runs all of `make_operations`; a call may take `timeout` seconds."""
        self._registry = registry
        self._backend = backend
        self._timeout = timeout
        self._costs: dict[str, Cost] = {}

    async def __call__(self, job: Job, chunk: int, data: bytes, report: Report) -> bytes:
        """Work on a chunk. Raises JobFailed, AttemptFailed, ExecutorGone."""
        parameters = parameters_of(job)
        operation = self._operation(job, parameters)
        rows = unpack(data, operation.model.schema)
        selection = parameters.selection()
        if job.operation == IMPORTANCE:
            selection = of_all_classes(selection)
        call = _Call(self._backend, operation, selection, self._timeout)
        cost = self._costs.setdefault(operation.name, Cost())
        answers: list[bytes] = []
        done = 0
        while done < len(rows):
            part = rows[done : done + cost.rows_in(CALL_SECONDS, len(rows))]
            started = time.perf_counter()
            answers.append(await call.answer(part, chunk * parameters.chunk_rows + done))
            cost.learn(len(part), time.perf_counter() - started)
            done += len(part)
            report(done / len(rows))
        if job.operation == IMPORTANCE:
            summed = Importance(
                operation.model.manifest.features, parameters.rows, detail="rows", first=chunk * parameters.chunk_rows
            )
            await asyncio.to_thread(lambda: summed.add(msgspec.json.decode(b"[%b]" % b",".join(answers)), rows))
            return summed.packed()
        return b",".join(answers)

    def _operation(self, job: Job, parameters: RowParameters) -> Operation:
        try:
            model = self._registry.get(job.model, job.version)
        except (ModelNotFound, VersionNotFound, NotLoaded):
            # a runner of another instance, or this one after a reload, may have it
            raise AttemptFailed(f"{job.model}/{job.version} is not loaded") from None
        if model.content_hash.hex() != parameters.content_hash:
            raise JobFailed(f"{job.model}/{job.version} has changed since the job was submitted")
        space = parameters.space if parameters.space in model.other_explainers else None
        return Operation(model, OPERATIONS[job.operation], space, interactions=parameters.interactions)


@dataclass(frozen=True, slots=True)
class _Call:
    backend: Backend
    operation: Operation
    selection: Selection
    timeout: float

    async def answer(self, rows: Rows, first: int, *, tries: int = 2) -> bytes:
        """The answers to rows, of which the first is instance `first` of the job.

        Rows that break the model, or need too much memory together, are halved and retried. So an error names the
        first bad instance, and good ones are answered. A single row has two `tries`: its process may have been killed
        for no fault of the model's.
        """
        try:
            payload = encode_rows(rows, self.selection)
            return (await self.backend.run(self.operation, payload, timeout=self.timeout))[1:-1]
        except DeadlineExceeded:
            last = first + len(rows) - 1
            raise AttemptFailed(f"instances {first} to {last} took longer than {self.timeout:g} s") from None
        except (CallFailed, MemoryExceeded) as error:
            if len(rows) == 1 and tries > 1 and isinstance(error, CallFailed):
                return await self.answer(rows, first, tries=tries - 1)
            if len(rows) == 1:
                log.warning("Row failed", operation=self.operation.name, instance=first, error=str(error))
                raise JobFailed(f"the model {_what_happened(error)} on instance {first}") from error
        half = len(rows) // 2
        return b",".join([await self.answer(rows[:half], first), await self.answer(rows[half:], first + half)])


def _what_happened(error: CallFailed | MemoryExceeded) -> str:
    if isinstance(error, MemoryExceeded):
        return "needs more memory than is allowed"
    return ResultNotFinite.REASON if ResultNotFinite.REASON in str(error) else "failed"
