"""The rules for the values of a record."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serving.entities.record import make_record, parse_time, stored_record
from serving.errors import InvalidRecord, InvalidRequest


def test_equal_records_of_a_time_have_equal_ids_whatever_the_order_of_their_columns() -> None:
    one = make_record("a", {"x": 1, "y": 2}, "2024-01-01")
    other = make_record("a", {"y": 2, "x": 1}, "2024-01-01T01:00:00+01:00")
    assert one == other
    assert make_record("a", {"x": 1, "y": 3}, "2024-01-01").id != one.id
    assert make_record("a", {"x": 1, "y": 2}, "2024-01-02").id != one.id


@pytest.mark.parametrize("entity", ["", "^GSPC", "BRK/B", "a\0b", "a b", "x" * 65, "-a"])
def test_what_is_no_name_of_an_entity_has_no_records(entity: str) -> None:
    with pytest.raises(InvalidRequest, match="an entity is 1 to 64 letters"):
        make_record(entity, {"x": 1})


def test_a_record_without_a_time_is_of_now_and_like_no_other() -> None:
    one, other = make_record("a", {"x": 1}), make_record("a", {"x": 1})
    assert one.id != other.id
    assert abs((datetime.now(UTC) - one.time).total_seconds()) < 60


@pytest.mark.parametrize(
    ("given", "kept"), [(2**53, 2**53), (2**53 + 1, float(2**53)), (-0.0, 0.0), (1e300, 1e300), (True, True)]
)
def test_numbers_are_kept_as_a_row_holds_them(given: Any, kept: Any) -> None:
    value = make_record("a", {"x": given}).values["x"]
    assert value == kept
    assert type(value) is type(kept)
    assert math.copysign(1, float(value or 0)) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, b"bytes", [1], {"y": 1}])
def test_what_no_store_keeps_is_refused_without_being_quoted(value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_record("a", {"x": value})
    assert str(value) not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-29T12:30:00.123999Z", datetime(2024, 2, 29, 12, 30, 0, 123000, tzinfo=UTC)),
        ("2024-02-29 23:30:00-05:00", datetime(2024, 3, 1, 4, 30, tzinfo=UTC)),
    ],
)
def test_times_are_in_utc_to_the_millisecond(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    "text", ["", "now", "2024-02-30", "1.5", "9999-12-31T23:59:59-10:00", "2" * 1000, "2024-01-01\0"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_time(text)


@pytest.mark.parametrize("ahead", [timedelta(hours=25), timedelta(days=365)])
def test_a_time_more_than_a_day_ahead_is_refused(ahead: timedelta) -> None:
    with pytest.raises(InvalidRequest, match="a time may be at most a day ahead"):
        make_record("a", {"x": 1}, (datetime.now(UTC) + ahead).isoformat())


def test_a_clock_that_is_a_few_hours_fast_is_accepted() -> None:
    moment = datetime.now(UTC) + timedelta(hours=14)
    assert make_record("a", {"x": 1}, moment.isoformat()).time > datetime.now(UTC)


@pytest.mark.parametrize("values", [None, [1], "text", {"x": [1]}, {"x": {"y": 1}}])
def test_stored_values_of_another_form_are_no_record(values: Any) -> None:
    with pytest.raises(InvalidRecord, match="the stored record 1 is not valid"):
        stored_record("a", "1", "2024-01-01", values)
