"""The result of a job, streamed chunk by chunk: as one JSON document, or as a CSV if the job is over rows."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from registry.explain.importance import Importance, select_importance
from registry.model import LoadedModel
from registry.outputs import Target
from serving.errors import JobNotFound
from serving.jobs.job import Job
from serving.jobs.rows import RowParameters, parameters_of
from serving.jobs.store import JobStore
from serving.predict.operation import ANSWERS, begin_answer, marks

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet may take for the beginning of a formula, or skip in front of one; also in full width."""

PLAIN_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


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
    names, columns_of = table(job.operation, parameters)
    yield _csv([names])
    instance = 0
    async for chunk in whole_result(store, job):
        answers = msgspec.json.decode(b"[" + chunk + b"]")
        # it takes a few milliseconds, for which the event loop should not stop
        lines = zip(*columns_of(answers, instance), strict=True)
        yield await asyncio.to_thread(_csv, lines)
        instance += len(answers)


async def importance_result(store: JobStore, job: Job, model: LoadedModel | None) -> dict[str, Any]:
    """The importance of features over the rows of a job; with the values of features while `model` is served."""
    parameters = parameters_of(job)
    summed = Importance(() if model is None else model.manifest.features, parameters.rows, detail="rows")
    async for chunk in whole_result(store, job):
        await asyncio.to_thread(summed.merge, chunk)
    members = marks(model) if model is not None else {}
    shown = select_importance(await asyncio.to_thread(summed.result), None, parameters.top)
    return {"model": job.model, "version": job.version, **shown, **members}


def importance_csv(found: Mapping[str, Any]) -> bytes:
    """A line for each output and feature."""
    lines = [
        [one.get("target", ""), one.get("class", ""), name, value, one["mean"].get(name)]
        for one in found["outputs"]
        for name, value in one["importance"].items()
    ]
    return _csv([["target", "class", "feature", "importance", "mean"], *lines])


async def whole_result(store: JobStore, job: Job) -> AsyncIterator[bytes]:
    """The results of all chunks in order, one in memory at a time.

    Raises JobNotFound if the job was pruned meanwhile, so that half a result does not look complete.
    """
    for number in range(job.chunks):
        chunk = await store.result(job.id, number)
        if chunk is None:
            raise JobNotFound("the result has been deleted")
        yield chunk


Columns = Callable[[Sequence[Any], int], Sequence[Sequence[Any]]]
"""Turns answers, at least one, and the number of the first instance, into the columns of a table."""


def table(operation: str, parameters: RowParameters) -> tuple[list[str], Columns]:
    """The names of the columns of a result, and what makes them; the first is the number of the instance."""
    if operation == "explain":
        head = [*(["target"] if _has_targets(parameters) else []), *(["class"] if _has_classes(parameters) else [])]
        return ["instance", *head, "output", "base_value", *parameters.explained_columns()], _explained(parameters)
    named = [(f"{target.name} ", target) for target in parameters.targets if target.name]
    columns = [column for prefix, target in named for column in _columns(parameters, target, prefix)]
    if not named:
        (target,) = parameters.targets or (Target(name="", classes=parameters.labels),)
        columns = _columns(parameters, target, "")

    def predicted(answers: Sequence[Any], first: int) -> Sequence[Sequence[Any]]:
        return [range(first, first + len(answers)), *(_cells(answers, path) for _, path in columns)]

    return ["instance", *(name for name, _ in columns)], predicted


def _explained(parameters: RowParameters) -> Columns:
    """Of each output a line."""
    targets, classes = _has_targets(parameters), _has_classes(parameters)
    features = parameters.explained_columns()

    def lines(answer: Any) -> Iterator[list[Any]]:
        for name, target in answer.get("targets", {"": answer}).items():
            for label, item in target.get("classes", {target.get("label"): target}).items():
                values = [item["values"].get(feature) for feature in features]
                head = [*([name] if targets else []), *([label] if classes else [])]
                yield [*head, item["output"], item["base_value"], *values]

    def explained(answers: Sequence[Any], first: int) -> Sequence[Sequence[Any]]:
        numbered = enumerate(answers, first)
        return list(zip(*([number, *line] for number, answer in numbered for line in lines(answer)), strict=True))

    return explained


def _has_targets(parameters: RowParameters) -> bool:
    return len(parameters.targets) > 1


def _has_classes(parameters: RowParameters) -> bool:
    return bool(parameters.labels) or any(target.classes for target in parameters.targets)


Path = tuple[str | int, ...]
"""The keys and indices that lead to a value inside of an answer."""


def _columns(parameters: RowParameters, target: Target, prefix: str) -> list[tuple[str, Path]]:
    """The columns of one target, and the path to the value of each."""
    parts = parameters.parts
    start: Path = ("prediction", target.name) if target.name else ()
    texts = list(map(str, target.classes))
    bounded = parameters.coverage is not None
    if not texts and "score" not in parts:  # a number, or a cluster
        own: Path = ("prediction",) if bounded else ()
        interval: list[tuple[str, Path]] = [("low", ("interval", 0)), ("high", ("interval", 1))]
        return [(f"{prefix}prediction", (*start, *own)), *(interval if bounded else [])]
    columns: list[tuple[str, Path]] = [] if parts == ("score",) else [(f"{prefix}label", (*start, "label"))]
    if "score" in parts:
        columns.append(("score", ("score",)))
    if "margins" in parts:
        columns += [(f"{prefix}margin of {text}", (*start, "margins", text)) for text in texts]
    elif "probabilities" in parts or not parts:
        columns += [(f"{prefix}probability of {text}", (*start, "probabilities", text)) for text in texts]
    return [*columns, *([("set", ("set",))] if bounded else [])]


def _cells(answers: Sequence[Any], path: Path) -> Sequence[Any]:
    """The value of each answer at a path: the label of an object, a set of labels as JSON; None where there is none."""
    cells = answers
    for key in path:
        if isinstance(key, int):
            cells = [cell[key] if isinstance(cell, list) else cell for cell in cells]
        else:
            cells = [cell.get(key) if isinstance(cell, dict) else cell for cell in cells]
    if any(isinstance(cell, dict | list) for cell in cells):
        cells = [cell.get("label") if isinstance(cell, dict) else cell for cell in cells]
        cells = [msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell for cell in cells]
    return cells


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_defuse, row) for row in rows)
    return text.getvalue().encode()


def _defuse(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe in front.

    Labels and names come from those who train models, and perhaps from their data. See OWASP, CSV Injection.
    """
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) and not PLAIN_NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
