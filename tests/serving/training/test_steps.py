"""The table from which a model is trained anew."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from registry.store.options import LoadOptions
from serving.entities.sqlite import SQLiteEntityStore
from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.training.steps import Steps
from tests.registry.test_promotion import add_plane
from tests.serving.entities.conftest import outcome


def test_training_is_given_the_last_outcomes_in_their_order_and_in_the_columns_of_its_model(tmp_path: Path) -> None:
    before = threading.enumerate()
    live = add_plane(tmp_path / "models").manifest
    source = SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=10)

    async def add() -> None:
        await source.add_outcomes([outcome(number, model="plane", outcome=float(number)) for number in range(3)])
        await source.close()

    log = SQLitePredictionStore(tmp_path)
    steps = Steps(
        tmp_path / "models", source, 2, tolerance=0.0, agreement=0.0, log=log, options=LoadOptions(), seconds=60.0
    )
    assert asyncio.run(steps.read_outcomes(live)).shape == (0, 4)
    asyncio.run(add())
    table = asyncio.run(steps.read_outcomes(live))
    assert list(table.columns) == ["x", "y", "outcome", "time"]
    assert table["outcome"].tolist() == [1.0, 2.0]
    assert [one for one in threading.enumerate() if one.name.startswith("data") and one not in before] == []
