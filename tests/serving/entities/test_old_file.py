"""A `data.db` of earlier versions is opened and goes on; `data.sql` is the dump of one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.entities.record import Outcome, Record, Value
from serving.entities.sqlite import SQLiteEntityStore
from tests.serving.entities.conftest import outcome, record

pytestmark = pytest.mark.anyio

DUMP = Path(__file__).with_name("data.sql").read_text()
SCHEMA_1 = "drop index outcomes_judged; pragma user_version = 1;"


@pytest.mark.parametrize("downgrade", ["", SCHEMA_1], ids=["schema 2", "schema 1"])
async def test_records_and_outcomes_of_an_earlier_version_are_read_and_added_to(tmp_path: Path, downgrade: str) -> None:
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        connection.executescript(DUMP + downgrade)
    store = SQLiteEntityStore(tmp_path, keep_records=10, keep_outcomes=10)
    values: dict[str, Value] = {"close": 171.5, "note": "é 'quoted'", "halted": False, "volume": None}
    assert await store.newest("AAPL", 10) == [
        Record("AAPL", "2", datetime(2026, 5, 2, tzinfo=UTC), {"close": 1e20}),
        Record("AAPL", "1", datetime(2026, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC), values),
    ]
    last, first = await store.outcomes("wine", 10)
    assert first == Outcome(
        model="wine",
        version="1",
        id="a",
        time=datetime(2026, 5, 1, tzinfo=UTC),
        instance={"x": 0.1, "kind": "b"},
        outcome="yes",
        prediction="no",
    )
    assert last.prediction is None
    assert await store.judged("wine", "1", 10) == [("yes", "no", None)]
    assert (await store.add_records([record(1, "AAPL"), record(3)])).stored == 1
    assert (await store.add_outcomes([outcome(1, "wine")])).stored == 1
    await store.close()
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        assert connection.execute("pragma user_version").fetchone() == (4,)
        indexes = {name for (name,) in connection.execute("select name from sqlite_master where type = 'index'")}
    assert indexes >= {"records_by_time", "outcomes_by_model", "outcomes_judged"}
