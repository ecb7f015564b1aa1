"""The table from which a model is trained anew."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from serving.entities.sqlite import SQLiteEntityStore
from serving.training.outcomes import outcome_reader
from tests.serving.entities.conftest import outcome

pytestmark = pytest.mark.anyio


async def test_outcomes_become_a_table_in_the_order_of_their_times(tmp_path: Path) -> None:
    source = SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=10)
    await source.add_outcomes([outcome(2), outcome(1, outcome="no"), outcome(0)])
    table = await outcome_reader(source, 2)("m")
    assert list(table.columns) == ["x", "kind", "flag", "missing", "outcome", "time"]
    assert table["outcome"].tolist() == ["yes", "no"]
    assert table["time"].is_monotonic_increasing
    assert len(await outcome_reader(source, 2)("other")) == 0


def test_reading_outcomes_leaves_no_thread_behind(tmp_path: Path) -> None:
    asyncio.run(outcome_reader(SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=1), 1)("m"))
    assert [thread for thread in threading.enumerate() if thread.name.startswith("data")] == []
