"""The contract of every store of records and outcomes, over SQLite and over a real Supabase server."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.entities.record import Record, make_record
from serving.entities.sqlite import SQLiteEntityStore, _sql
from serving.entities.store import EntityStore
from tests.serving.entities.conftest import KEEP, Open, outcome, record

pytestmark = pytest.mark.anyio

VALUES = {
    "whole": 3,
    "half": 0.5,
    "tenth": 0.1,
    "negative": -1.0,
    "large": 1e20,
    "odd": 1e23,
    "largest": sys.float_info.max,
    "smallest": 5e-324,
    "text": "é \U0001f600 \"quoted\" 'and' \\ \n",
    "empty": "",
    "yes": True,
    "no": False,
    "none": None,
    "Name with spaces, and more": 1,
}


async def test_the_newest_records_come_first(store: EntityStore) -> None:
    records = [record(number) for number in (2, 0, 3, 1)]
    assert await store.add_records(records) == 4
    assert await store.newest("a", 3) == [record(3), record(2), record(1)]


async def test_records_of_one_time_come_last_first(store: EntityStore) -> None:
    same = [make_record("a", {"x": number}, "2024-01-01", str(number)) for number in range(3)]
    for one in same:
        await store.add_records([one])
    assert await store.newest("a", 2) == [same[2], same[1]]


async def test_values_come_back_as_they_were(store: EntityStore) -> None:
    given = make_record("a", VALUES, "2024-02-29T23:59:59.123Z", "1")
    await store.add_records([given])
    (found,) = await store.newest("a", 1)
    assert found == given
    assert {name: type(value) for name, value in found.values.items() if isinstance(value, bool | str)} == {
        name: type(value) for name, value in VALUES.items() if isinstance(value, bool | str)
    }


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)])
async def test_times_far_away_are_kept(store: EntityStore, moment: datetime) -> None:
    await store.add_records([Record("a", "1", moment, {"x": 1})])
    (found,) = await store.newest("a", 1)
    assert found.time == moment


async def test_a_record_that_comes_again_is_kept_once_as_it_came_first(open_store: Open) -> None:
    await open_store().add_records([record(1)])
    other = open_store()
    assert await other.add_records([record(1, x=99.0), record(2)]) == 1
    assert await other.newest("a", KEEP) == [record(2), record(1)]


async def test_the_same_id_of_another_entity_is_another_record(store: EntityStore) -> None:
    assert await store.add_records([record(1), record(1, "b")]) == 2
    assert await store.newest("b", KEEP) == [record(1, "b")]


async def test_an_entity_without_records_has_none(store: EntityStore) -> None:
    assert await store.newest("nobody", 3) == []


async def test_only_the_newest_records_of_each_entity_are_kept(store: EntityStore) -> None:
    await store.add_records([record(0, "other")])
    await store.add_records([record(number) for number in range(KEEP + 3)])
    assert [one.id for one in await store.newest("a", 100)] == [str(number) for number in range(KEEP + 2, 2, -1)]
    assert len(await store.newest("other", 100)) == 1


async def test_records_that_come_at_once_are_all_kept(open_store: Open) -> None:
    stores = [open_store() for _ in range(3)]
    added = await asyncio.gather(*(store.add_records([record(number)]) for number in range(4) for store in stores))
    assert sum(added) == 4
    assert len(await stores[0].newest("a", 100)) == 4


async def test_the_last_outcomes_come_first(store: EntityStore) -> None:
    outcomes = [outcome(number) for number in (2, 0, 1)]
    assert await store.add_outcomes(outcomes) == 3
    assert await store.outcomes("m", 2) == [outcome(1), outcome(0)]
    assert await store.outcomes("other", 2) == []


@pytest.mark.parametrize(("truth", "said"), [("a", None), (1.5, 2.0), (-3.0, 1e300), ("1", "0")])
async def test_labels_and_numbers_come_back_as_they_were(store: EntityStore, truth: object, said: object) -> None:
    given = outcome(1, outcome=truth, prediction=said)
    await store.add_outcomes([given])
    assert await store.outcomes("m", 1) == [given]


async def test_a_version_is_judged_by_its_last_outcomes_if_it_has_answered(store: EntityStore) -> None:
    said = ["no", None, "yes", "no"]
    await store.add_outcomes([outcome(number, prediction=said[number]) for number in range(4)])
    await store.add_outcomes([outcome(4, "other"), outcome(5, version="2")])
    assert await store.judged("m", "1", 10) == [("yes", "no"), ("yes", "yes"), ("yes", "no")]
    assert await store.judged("m", "1", 2) == [("yes", "no"), ("yes", "yes")]
    assert await store.judged("m", "3", 10) == []


async def test_an_outcome_that_comes_again_is_kept_once(open_store: Open) -> None:
    assert await open_store().add_outcomes([outcome(1)]) == 1
    assert await open_store().add_outcomes([outcome(1, outcome="no"), outcome(2)]) == 1
    assert [one.outcome for one in await open_store().outcomes("m", 10)] == ["yes", "yes"]


async def test_only_the_last_outcomes_of_each_model_are_kept(store: EntityStore) -> None:
    await store.add_outcomes([outcome(0, "other")])
    await store.add_outcomes([outcome(number) for number in range(KEEP + 2)])
    assert [one.id for one in await store.outcomes("m", 100)] == ["6", "5", "4", "3", "2"]
    assert len(await store.outcomes("other", 100)) == 1


async def test_nothing_to_keep_is_no_error(store: EntityStore) -> None:
    assert await store.add_records([]) == 0
    assert await store.add_outcomes([]) == 0


async def test_a_store_that_can_be_written_says_so(store: EntityStore) -> None:
    await store.probe()
    assert store.state in ("closed", "disabled")


async def test_a_closed_store_opens_again(store: EntityStore) -> None:
    await store.add_records([record(1)])
    await store.close()
    assert await store.newest("a", 1) == [record(1)]


async def test_a_file_keeps_no_more_records_in_all_than_it_may(tmp_path: Path) -> None:
    store = SQLiteEntityStore(tmp_path, keep_records=KEEP, keep_outcomes=KEEP, keep_in_all=3)
    for number in range(5):
        await store.add_records([record(number, f"entity-{number}")])
    kept = [await store.newest(f"entity-{number}", 1) for number in range(5)]
    assert [len(records) for records in kept] == [0, 0, 1, 1, 1]
    await store.close()


async def test_outcomes_of_other_versions_are_not_read_to_judge_one(tmp_path: Path) -> None:
    store = SQLiteEntityStore(tmp_path, keep_records=KEEP, keep_outcomes=KEEP)
    await store.judged("m", "1", 10)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        judged = _sql("judged_outcomes")
        plan = connection.execute(f"explain query plan {judged}", ("m", "1", 10)).fetchall()
    assert [step[3] for step in plan] == ["SEARCH outcomes USING INDEX outcomes_judged (model=? AND version=?)"]


async def test_an_entity_that_is_quiet_keeps_its_records_while_the_file_has_room(tmp_path: Path) -> None:
    store = SQLiteEntityStore(tmp_path, keep_records=2, keep_outcomes=KEEP, keep_in_all=5)
    await store.add_records([record(0, "quiet")])
    for number in range(20):
        await store.add_records([record(number, "busy")])
    assert len(await store.newest("quiet", 1)) == 1
    assert len(await store.newest("busy", 5)) == 2
    await store.close()
