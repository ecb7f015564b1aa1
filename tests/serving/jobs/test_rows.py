"""Chunks of rows whose calls to a model are killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.errors import InvalidSelection
from registry.outputs import Target
from registry.registry import Registry, load_registry
from serving.errors import CallFailed, InvalidRequest
from serving.jobs.attempt import JobFailed
from serving.jobs.requests import JobReader
from serving.jobs.results import table
from serving.jobs.rows import RowHandler, RowParameters, pack
from serving.jobs.store import JobStore
from serving.predict.operation import Operation
from tests.serving.jobs.conftest import claimed, job_request

pytestmark = pytest.mark.anyio


class Killed:
    """A backend whose first calls are killed; the others are answered."""

    at_once = 1

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked: list[str] = []

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:  # noqa: ARG002 - a backend's
        self.asked.append(operation.name)
        if self.left:
            self.left -= 1
            raise CallFailed("the process that ran the call was killed")
        return operation.answer_call(payload)

    async def close(self) -> None: ...


async def answer_one(store: JobStore, registry: Registry, times: int) -> bytes:
    """A chunk of one row, of which so many calls are killed."""
    model = registry.get("wine")
    rows = model.schema.rows([model.manifest.example])
    parameters = RowParameters(
        content_hash=model.content_hash.hex(),
        rows=1,
        chunk_rows=1,
        features=model.schema.names,
        labels=model.labels.texts,
        classes="predicted",
        top=None,
    )
    request = job_request(
        operation="predict",
        model="wine",
        version=model.version,
        parameters=msgspec.json.encode(parameters),
        inputs=(pack(rows),),
    )
    await store.submit(request)
    job = await claimed(store)
    return await RowHandler(registry, Killed(times), timeout=5.0)(job, 0, pack(rows), lambda _share: None)


async def test_row_whose_call_was_killed_once_is_answered(store: JobStore, models: Path) -> None:
    assert b"label" in await answer_one(store, load_registry(models), 1)


async def test_row_whose_call_is_killed_again_fails_its_job(store: JobStore, models: Path) -> None:
    with pytest.raises(JobFailed, match="instance 0"):
        await answer_one(store, load_registry(models), 2)


async def test_job_explains_in_the_space_that_was_asked_for(store: JobStore, models: Path) -> None:
    registry = load_registry(models)
    model = registry.get("wine")
    reader = JobReader(registry, max_rows=10, chunk_rows=10)
    asked = {"operation": "explain", "model": "wine", "instances": [model.manifest.example]}
    for space in (None, "probability"):
        request = await reader.read_json(msgspec.json.encode(asked | {"parameters": {"space": space}}), "")
        await store.submit(request)
        job = await claimed(store)
        backend = Killed(0)
        content = await RowHandler(registry, backend, timeout=5.0)(job, 0, request.inputs[0], lambda _share: None)
        assert msgspec.json.decode(content)["space"] == (space or "margin")
        assert backend.asked == [f"wine/1:explain{'-probability' if space else ''}"]
    with pytest.raises(InvalidSelection, match="space must be one of margin, probability"):
        await reader.read_json(msgspec.json.encode(asked | {"parameters": {"space": "value"}}), "")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"top": "x"}, "top must be a whole number or null"),
        ({"interactions": "maybe"}, "interactions must be true or false"),
        ({"coverage": ["0.5", "0.9"]}, "coverage must be a number or null"),
        ({"operation": "train"}, "operation must be one of explain, importance, predict"),
        ({"rows": "1"}, "there is no member `rows`; use [?]operation="),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_query_that_is_wrong_is_told_what_is(models: Path, query: dict[str, Any], reason: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    reader = JobReader(load_registry(models), max_rows=10, chunk_rows=10)
    with pytest.raises(InvalidRequest, match=reason):
        await reader.read_csv({"operation": "explain", "model": "wine"} | query, nothing(), "")


async def test_table_of_explained_targets_has_a_line_for_each() -> None:
    targets = (Target(name="a"), Target(name="b", classes=("no", "yes")))
    parameters = RowParameters(
        content_hash="",
        rows=1,
        chunk_rows=1,
        features=("x", "y", "z"),
        labels=(),
        classes="predicted",
        top=None,
        targets=targets,
        shown=("xy", "z"),
    )
    names, columns_of = table("explain", parameters)
    plain = {"output": 3.0, "base_value": 1.0, "values": {"xy": 2.5, "z": -0.5}}
    answer = {"targets": {"a": plain, "b": plain | {"label": "yes"}}}
    assert names == ["instance", "target", "class", "output", "base_value", "xy", "z"]
    lines = list(zip(*columns_of([answer], 7), strict=True))
    assert lines == [(7, "a", None, 3.0, 1.0, 2.5, -0.5), (7, "b", "yes", 3.0, 1.0, 2.5, -0.5)]
