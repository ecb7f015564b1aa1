"""The table from which a model is trained anew."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from registry.store.options import LoadOptions
from serving.entities.sqlite import SQLiteEntityStore
from serving.training.steps import Steps, outcome_table
from tests.registry.test_promotion import add_plane
from tests.serving.entities.conftest import outcome


def test_outcomes_become_a_table_in_the_order_of_their_times() -> None:
    table = outcome_table([outcome(2), outcome(1, outcome="no")])
    assert list(table.columns) == ["x", "kind", "flag", "missing", "outcome", "time"]
    assert table["outcome"].tolist() == ["no", "yes"]
    assert table["time"].is_monotonic_increasing
    assert len(outcome_table([])) == 0


def test_training_is_given_the_last_outcomes_in_the_columns_of_its_model(tmp_path: Path) -> None:
    live = add_plane(tmp_path / "models").manifest
    source = SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=10)

    async def add() -> None:
        await source.add_outcomes([outcome(number, model="plane", outcome=float(number)) for number in range(3)])
        await source.close()

    asyncio.run(add())
    steps = Steps(tmp_path / "models", source, 2, tolerance=0.0, options=LoadOptions(), seconds=60.0)
    table = asyncio.run(steps.read_outcomes(live))
    assert list(table.columns) == ["x", "y", "outcome", "time"]
    assert table["outcome"].tolist() == [1.0, 2.0]
    assert [thread for thread in threading.enumerate() if thread.name.startswith("data")] == []
