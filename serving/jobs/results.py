"""The result of a job, streamed chunk by chunk: as one JSON document, or as a CSV if the job is over rows."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import msgspec

from registry.model import LoadedModel
from serving.errors import JobNotFound
from serving.jobs.job import Job
from serving.jobs.rows import RowParameters, parameters_of
from serving.jobs.store import JobStore
from serving.predict.operation import ANSWERS, begin_answer, marks


async def json_result(store: JobStore, job: Job, model: LoadedModel | None) -> AsyncIterator[bytes]:
    """The JSON that a request would have returned; `model` is the job's, if it is still served."""
    yield b'%s,"%s":[' % (begin_answer(job.model, job.version), ANSWERS[job.operation].encode())
    separator = b""
    async for chunk in whole_result(store, job):
        yield separator + chunk
        separator = b","
    members = marks(model) if model is not None else {}
    yield b"]}" if not members else b"]," + msgspec.json.encode(members)[1:]


async def csv_result(store: JobStore, job: Job) -> AsyncIterator[bytes]:
    """A header, then a line for each prediction, or for each instance and class explained."""
    parameters = parameters_of(job)
    columns, lines = _table(job.operation, parameters)
    yield _csv([columns])
    instance = 0
    async for chunk in whole_result(store, job):
        answers = msgspec.json.decode(b"[" + chunk + b"]")
        # it takes a few milliseconds, for which the event loop should not stop
        numbered = enumerate(answers, instance)
        yield await asyncio.to_thread(_csv, ([number, *line] for number, answer in numbered for line in lines(answer)))
        instance += len(answers)


async def whole_result(store: JobStore, job: Job) -> AsyncIterator[bytes]:
    """The results of all chunks in order, one in memory at a time.

    Raises JobNotFound if the job was pruned meanwhile, so that half a result does not look complete.
    """
    for number in range(job.chunks):
        chunk = await store.result(job.id, number)
        if chunk is None:
            raise JobNotFound("the result has been deleted")
        yield chunk


Lines = Callable[[Any], Iterator[list[Any]]]
"""Turns one answer into its lines, without the number of its instance."""


def _table(operation: str, parameters: RowParameters) -> tuple[list[str], Lines]:
    """The columns of a result, and what makes its lines."""
    labels = list(parameters.labels)
    features = parameters.explained_columns()

    def explained(answer: Any) -> Iterator[list[Any]]:
        for label, item in answer.get("classes", {answer.get("label"): answer}).items():
            values = [item["values"].get(feature) for feature in features]
            yield [*([label] if labels else []), item["output"], item["base_value"], *values]

    def classified(answer: Any) -> Iterator[list[Any]]:
        probabilities = answer.get("probabilities", {})
        yield [answer["label"], *[probabilities.get(label) for label in labels]]

    def plain(answer: Any) -> Iterator[list[Any]]:  # the number of a regressor, or the label of a cluster
        yield [answer["label"] if isinstance(answer, dict) else answer]

    if operation == "explain":
        head = ["class"] if labels else []
        return ["instance", *head, "output", "base_value", *features], explained
    if labels:
        return ["instance", "label", *[f"probability of {label}" for label in labels]], classified
    return ["instance", "prediction"], plain


def _csv(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
