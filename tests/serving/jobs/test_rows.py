"""Chunks of rows whose calls to a model are killed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from registry.registry import Registry, load_registry
from serving.errors import CallFailed
from serving.jobs.attempt import JobFailed
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

    async def run(self, operation: Operation, payload: bytes, *, timeout: float) -> bytes:  # noqa: ARG002 - a backend's
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
