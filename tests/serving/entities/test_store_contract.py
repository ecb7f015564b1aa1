"""The contract of every store of records and outcomes, over SQLite and over a real Supabase server."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from registry.quality import add_up
from serving.entities.record import Entity, Outcome, Record, make_record, now, start_of
from serving.entities.sqlite import SQLiteEntityStore, _sql
from serving.entities.store import Added, Deleted, EntityStore
from serving.errors import InvalidRequest, StoreFull
from tests.serving.entities.conftest import KEEP, Open, day, outcome, record

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
    assert (await store.add_records(records)).stored == 4
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
    assert (await other.add_records([record(1, x=99.0), record(2)])).stored == 1
    assert await other.newest("a", KEEP) == [record(2), record(1)]


async def test_the_same_id_of_another_entity_is_another_record(store: EntityStore) -> None:
    assert (await store.add_records([record(1), record(1, "b")])).stored == 2
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
    assert sum(one.stored for one in added) == 4
    assert len(await stores[0].newest("a", 100)) == 4


async def test_the_last_outcomes_come_first(store: EntityStore) -> None:
    outcomes = [outcome(number) for number in (2, 0, 1)]
    assert (await store.add_outcomes(outcomes)).stored == 3
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
    assert await store.judged("m", "1", 10) == [("yes", "no", None), ("yes", "yes", None), ("yes", "no", None)]
    assert await store.judged("m", "1", 2) == [("yes", "no", None), ("yes", "yes", None)]
    assert await store.judged("m", "3", 10) == []


async def test_an_outcome_that_comes_again_is_kept_once(open_store: Open) -> None:
    assert (await open_store().add_outcomes([outcome(1)])).stored == 1
    assert (await open_store().add_outcomes([outcome(1, outcome="no"), outcome(2)])).stored == 1
    assert [one.outcome for one in await open_store().outcomes("m", 10)] == ["yes", "yes"]


async def test_only_the_last_outcomes_of_each_model_are_kept(store: EntityStore) -> None:
    await store.add_outcomes([outcome(0, "other")])
    await store.add_outcomes([outcome(number) for number in range(KEEP + 2)])
    assert [one.id for one in await store.outcomes("m", 100)] == ["6", "5", "4", "3", "2"]
    assert len(await store.outcomes("other", 100)) == 1


async def test_nothing_to_keep_is_no_error(store: EntityStore) -> None:
    assert (await store.add_records([])).stored == 0
    assert (await store.add_outcomes([])).stored == 0


async def test_a_store_that_can_be_written_says_so(store: EntityStore) -> None:
    await store.probe()
    assert store.state in ("closed", "disabled")


async def test_a_closed_store_opens_again(store: EntityStore) -> None:
    await store.add_records([record(1)])
    await store.close()
    assert await store.newest("a", 1) == [record(1)]


async def test_outcomes_of_other_versions_are_not_read_to_judge_one(tmp_path: Path) -> None:
    store = SQLiteEntityStore(tmp_path, keep_records=KEEP, keep_outcomes=KEEP)
    await store.judged("m", "1", 10)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        judged = _sql("judged_outcomes")
        plan = connection.execute(f"explain query plan {judged}", ("m", "1", 10)).fetchall()
    assert [step[3] for step in plan] == ["SEARCH outcomes USING INDEX outcomes_judged (model=? AND version=?)"]


async def test_what_is_not_kept_is_said(store: EntityStore) -> None:
    await store.add_records([record(number) for number in range(1, KEEP + 1)])
    assert await store.add_records([record(1), record(0), record(9)]) == Added(stored=1, present=1, dropped=1)
    await store.add_outcomes([outcome(1)])
    assert await store.add_outcomes([outcome(1), outcome(2)]) == Added(stored=1, present=1)
    assert (await store.add_outcomes([outcome(number) for number in range(10, 20)])).dropped == 5


async def test_an_id_belongs_to_its_writer(store: EntityStore) -> None:
    for writer in ("", "a", "b"):
        assert await store.add_records([record(0)], writer=writer) == Added(1, 0, 0)
        assert await store.add_records([record(0)], writer=writer) == Added(0, 1, 0)
    found = await store.newest("a", 10)
    assert [one.shown_id for one in found] == [record(0).id] * 3
    assert len({one.id for one in found}) == 3
    assert await store.newest("a", 10, after=found[0].id) == found[1:]


async def test_one_writer_displaces_at_most_a_share_of_another(store: EntityStore) -> None:
    first = [record(number) for number in range(KEEP)]
    await store.add_records(first, writer="good")
    flood = [record(number) for number in range(100, 200)]
    added = await store.add_records(flood, writer="bad")
    assert (added.stored, added.dropped) == (3, 97)
    assert [one.shown_id for one in await store.newest("a", 100)] == ["199", "198", "197", "4", "3"]
    await store.add_records([record(300)], writer="good")
    assert [one.shown_id for one in await store.newest("a", 100)] == ["300", "199", "198", "197", "4"]


async def test_one_writer_displaces_at_most_a_share_of_the_outcomes_of_another(store: EntityStore) -> None:
    first = [outcome(number) for number in range(KEEP)]
    await store.add_outcomes(first, "good")
    for number in range(100):
        await store.add_outcomes([outcome(1000 + number)], "bad")
    assert [one.id for one in await store.outcomes("m", 100)] == ["1099", "1098", "1097", "4", "3"]


async def test_invented_entities_push_out_nobody(open_store: Open) -> None:
    store = open_store(keep_in_all=8)
    await store.add_records([record(number) for number in range(3)])
    for number in range(5):
        await store.add_records([record(0, f"invented-{number}")])
    with pytest.raises(StoreFull):
        await store.add_records([record(0, "invented-5")])
    with pytest.raises(StoreFull):
        await store.add_records([record(7), record(0, "invented-5")])
    assert len(await store.newest("a", 100)) == 3
    assert await store.add_records([record(8)]) == Added(stored=1)
    assert [one.id for one in await store.newest("a", 100)] == ["8", "2", "1"]
    await store.delete_entity("invented-0")
    assert await store.add_records([record(0, "new")]) == Added(stored=1)


async def test_a_writer_fills_half_of_the_store_and_leaves_room_for_others(open_store: Open) -> None:
    store = open_store(keep_in_all=8)
    for number in range(4):
        await store.add_records([record(0, f"bad-{number}")], writer="bad")
    with pytest.raises(StoreFull):
        await store.add_records([record(0, "bad-4")], writer="bad")
    assert (await store.add_records([record(number) for number in range(4)], writer="good")).stored == 4


async def test_what_was_deleted_makes_room(open_store: Open) -> None:
    store = open_store(keep_in_all=4)
    for _ in range(3):
        await store.add_records([record(number) for number in range(4)], writer="a")
        assert len(await store.newest("a", 10)) == 2
        await store.delete_records("a")


async def test_records_are_read_page_by_page(store: EntityStore) -> None:
    same = [make_record("a", {"x": number}, "2024-01-01", f"same-{number}") for number in range(3)]
    await store.add_records([record(1), *same, record(0), record(0, "b")])
    ids, after = [], None
    while page := await store.newest("a", 2, after):
        ids += [one.id for one in page]
        after = page[-1].id
    assert ids == ["1", "0", "same-2", "same-1", "same-0"]
    with pytest.raises(InvalidRequest, match="after must be the id of a record"):
        await store.newest("a", 2, "unknown")


async def test_entities_are_listed_by_name_with_what_they_have(store: EntityStore) -> None:
    for name, kind in (("b", "house"), ("a", None), ("c", "share"), ("d", "house")):
        await store.add_records([record(1, name), record(0, name)], kind)
    listed = await store.entities(3)
    assert listed == [
        Entity("a", "", 2, day(1)),
        Entity("b", "house", 2, day(1)),
        Entity("c", "share", 2, day(1)),
    ]
    assert [one.entity for one in await store.entities(3, "c")] == ["d"]
    assert [one.entity for one in await store.entities(1, "b", "house")] == ["d"]
    assert await store.entities(3, "d") == []
    assert await store.entities(3, kind="none") == []


async def test_an_entity_has_the_kind_of_its_first_record(store: EntityStore) -> None:
    await store.add_records([record(0)], "house")
    await store.add_records([record(1)])
    await store.add_records([record(2)], "house")
    assert [one.kind for one in await store.newest("a", 5)] == ["house"] * 3
    with pytest.raises(InvalidRequest, match="a is an entity of kind house"):
        await store.add_records([record(3)], "share")
    assert len(await store.newest("a", 5)) == 3
    await store.add_records([record(0, "b")])
    with pytest.raises(InvalidRequest, match=r"b is an entity of kind \(none\)"):
        await store.add_records([record(1, "b")], "share")
    await store.delete_entity("a")
    assert (await store.add_records([record(0)], "share")).stored == 1


async def test_records_before_a_time_are_deleted_alone(store: EntityStore) -> None:
    await store.add_records([record(number) for number in range(4)] + [record(0, "b")])
    assert await store.delete_records("a", day(2)) == 2
    assert [one.id for one in await store.newest("a", 9)] == ["3", "2"]
    assert len(await store.newest("b", 9)) == 1
    assert await store.delete_records("a") == 2
    assert await store.newest("a", 9) == []


async def test_an_entity_is_deleted_with_all_that_is_about_it(store: EntityStore) -> None:
    await store.add_records([record(0), record(0, "b")])
    await store.add_outcomes([outcome(0, entity="a"), outcome(1, entity="b"), outcome(2)])
    assert await store.outcomes_of_entity("a", 9) == [outcome(0, entity="a")]
    assert await store.delete_entity("a") == Deleted(records=1, outcomes=1)
    assert await store.delete_entity("a") == Deleted(records=0, outcomes=0)
    assert [one.entity for one in await store.outcomes("m", 9)] == [None, "b"]
    assert len(await store.newest("b", 9)) == 1


async def test_all_that_a_writer_has_stored_is_deleted(store: EntityStore) -> None:
    await store.add_records([record(0), record(0, "b")], writer="w")
    await store.add_records([record(1), record(0, "c")], writer="v")
    await store.add_outcomes([outcome(0), outcome(1)], "w")
    await store.add_outcomes([outcome(2)], "v")
    entities, deleted = await store.delete_writer("w")
    assert (sorted(entities), deleted) == (["a", "b"], Deleted(records=2, outcomes=2))
    assert [len(await store.newest(name, 9)) for name in "abc"] == [1, 0, 1]
    assert len(await store.outcomes("m", 9)) == 1
    assert await store.delete_writer("w") == ([], Deleted(records=0, outcomes=0))


async def test_writers_of_one_entity_at_once_never_exceed_its_bound(open_store: Open) -> None:
    stores = [open_store() for _ in range(3)]
    batches = [[record(10 * n + m) for m in range(4)] for n in range(6)]
    await asyncio.gather(*(stores[n % 3].add_records(batch, writer=f"w{n % 2}") for n, batch in enumerate(batches)))
    assert len(await stores[0].newest("a", 100)) == KEEP


async def test_what_one_writer_has_stored_is_deleted_alone(store: EntityStore) -> None:
    await store.add_records([record(0), record(1)], writer="a")
    await store.add_records([record(2)], writer="b")
    await store.add_outcomes([outcome(0, entity="a")], "b")
    assert await store.delete_records("a", day(1), "b") == 0
    assert await store.delete_records("a", day(1), "a") == 1
    assert await store.delete_entity("a", "a") == Deleted(records=1, outcomes=0)
    assert await store.delete_entity("a") == Deleted(records=1, outcomes=1)


def hour(number: int, of: int = 0) -> datetime:
    """An hour of the day of the number `of` before today: quality is kept for a year."""
    return start_of("day", now()) - timedelta(days=2 + of) + timedelta(hours=number)


def scored(number: int, when: datetime, **changes: Any) -> Outcome:
    sums = {"outcomes": Decimal(1), f"bin/{number % 3}": Decimal(1), "loss": Decimal(f"0.{number}") + 10**17}
    fields: dict[str, Any] = {"time": when, "sums": sums}
    return outcome(number, **(fields | changes))


async def test_sums_of_outcomes_are_kept_by_hour_and_day(open_store: Open) -> None:
    store, other = open_store(), open_store()
    moments = [hour(1), hour(1) + timedelta(minutes=59), hour(2), hour(3, of=1)]
    for number, moment in enumerate(moments):
        await (store, other)[number % 2].add_outcomes([scored(number, moment)])
    hours = await store.quality("m", "hour", hour(0, of=9))
    assert [(one.version, one.start) for one in hours] == [("1", hour(3, of=1)), ("1", hour(1)), ("1", hour(2))]
    assert hours[1].sums == {
        "outcomes": 2,
        "bin/0": 1,
        "bin/1": 1,
        "loss": Decimal("200000000000000000.1"),
    }
    days = await store.quality("m", "day", hour(0, of=9))
    assert [one.start for one in days] == [hour(0, of=1), hour(0)]
    assert days[1].sums == add_up(one.sums for one in hours[1:])
    assert await store.quality("m", "hour", hour(2)) == hours[2:]
    assert await store.quality("m", "hour", hour(0), "2") == await store.quality("n", "hour", hour(0)) == []


async def test_outcomes_count_once_and_only_if_they_are_stored(store: EntityStore) -> None:
    twice = [scored(1, hour(1)), scored(1, hour(2)), scored(1, hour(1), model="n")]
    for _ in range(2):
        await store.add_outcomes(twice, "a")
    await store.add_outcomes(twice, "b")
    (one,) = await store.quality("m", "hour", hour(0))
    assert one.start == hour(1)
    assert one.sums["outcomes"] == 1
    many = [scored(number, hour(3), model="o") for number in range(KEEP + 3)]
    assert (await store.add_outcomes(many)).stored == KEEP
    (one,) = await store.quality("o", "hour", hour(0))
    assert one.sums["outcomes"] == KEEP


async def test_quality_stays_when_outcomes_go_and_for_a_year(store: EntityStore) -> None:
    await store.add_outcomes([scored(0, hour(1), entity="a"), scored(1, hour(0, of=363))])
    await store.delete_entity("a")
    assert len(await store.quality("m", "day", hour(0, of=500))) == 2
    await store.add_outcomes([scored(2, hour(0, of=365)), outcome(3)])
    assert len(await store.quality("m", "day", hour(0, of=500))) == 2


async def test_outcomes_of_writers_at_once_are_all_added_up(open_store: Open) -> None:
    stores = [open_store() for _ in range(3)]
    calls = [stores[n % 3].add_outcomes([scored(n, hour(n % 2))], f"w{n % 2}") for n in range(12)]
    await asyncio.gather(*calls)
    hours = await stores[0].quality("m", "hour", hour(0))
    assert [one.sums["outcomes"] for one in hours] == [6, 6]


async def test_numbers_of_all_sizes_are_added_up_exactly(store: EntityStore) -> None:
    values = [Decimal(text) for text in ("1E+60", "1", "-1E+60", "3E-30", "-0.5")]
    for number, value in enumerate(values):
        await store.add_outcomes([scored(number, hour(0), sums={"value/": value})])
    (one,) = await store.quality("m", "hour", hour(0))
    assert float(one.sums["value/"]) == 0.5


async def test_low_quality_is_marked_once(open_store: Open) -> None:
    store, other = open_store(), open_store()
    changes = [await one.mark_quality("m", "1", is_low=low) for low in (False, True) for one in (store, other)]
    assert changes == [False, False, True, False]
    assert await store.mark_quality("m", "2", is_low=True)
    assert [await store.mark_quality("m", "1", is_low=low) for low in (False, False, True)] == [True, False, True]


async def test_probabilities_are_kept_with_the_prediction(store: EntityStore) -> None:
    shares = {"yes": 0.25, "no": 0.75}
    sent = [outcome(0, probabilities=shares), outcome(1), outcome(2, probabilities={"a": shares, "b": {"1": 1.0}})]
    await store.add_outcomes(sent)
    assert await store.outcomes("m", 9) == sent[::-1]
    assert [one.probabilities for one in await store.judged("m", "1", 9)] == [one.probabilities for one in sent[::-1]]
