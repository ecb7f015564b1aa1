"""Deleted rows leave no byte in any file of the SQLite store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.monitoring.predictions.store import EVERY_ROW, Wanted
from tests.serving.monitoring.predictions.conftest import logged, minute

pytestmark = pytest.mark.anyio


def traces(directory: Path, text: str) -> list[str]:
    """The files that hold a text."""
    return [path.name for path in directory.iterdir() if text.encode() in path.read_bytes()]


async def test_nothing_is_left_of_deleted_rows_among_thousands_of_others(tmp_path: Path) -> None:
    """Rows of all lengths in any order, so that pages are split, joined and given back."""
    chance = random.Random(3)
    store, reader = SQLitePredictionStore(tmp_path), SQLitePredictionStore(tmp_path)
    entities = ["keep", "forget"]
    for batch in range(40):
        rows = [
            logged(
                batch * 100 + chance.random(),
                place,
                request_id=f"{entity}-request-{batch}-{place}",
                entity=f"{entity}-entity",
                key=f"{entity}-key",
                row={"text": f"{entity}-value " * chance.choice((1, 10, 100, 500))},
                answer=f"{entity}-answer",
            )
            for place in range(50)
            for entity in chance.sample(entities, 1)
        ]
        await store.add(rows)
        await reader.find(EVERY_ROW, 10)
        if batch % 10 == 5:
            await store.prune(10**9, minute(batch * 50))
    assert traces(tmp_path, "forget-")
    assert await reader.delete(Wanted(entity="forget-entity")) > 300
    assert traces(tmp_path, "forget-") == []
    assert len(await store.find(Wanted(entity="keep-entity"), 100)) == 100
    await store.close()
    await reader.close()
