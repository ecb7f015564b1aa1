"""When schedules fire: cron's times, also when clocks are changed, and what is due of them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from serving.schedules.when import MAX_COUNTED_FIRINGS, NEVER, Due, Every, find_due, parse_cron, parse_every

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = parse_cron("30 2 * * *", "Europe/Berlin")
"""An hour that does not come on 2026-03-29 and comes twice on 2026-10-25."""


def at(text: str) -> float:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def firings(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The times in UTC that follow `start`."""
    when, moment, found = parse_cron(expression, zone), at(start), []
    for _ in range(count):
        moment = when.after(moment)
        found.append(datetime.fromtimestamp(moment, UTC).isoformat()[:16])
    return found


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("*/15 * * * *", "2026-01-01T00:00:00", ["2026-01-01T00:15", "2026-01-01T00:30"]),
        ("0 3 * * 1", "2026-01-01T00:00:00", ["2026-01-05T03:00", "2026-01-12T03:00"]),
        ("0 0 29 2 *", "2026-01-01T00:00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("59 23 L * *", "2026-02-27T23:59:30", ["2026-02-28T23:59", "2026-03-31T23:59"]),
    ],
)
def test_times_follow_the_expression(expression: str, start: str, expected: list[str]) -> None:
    assert firings(expression, "UTC", start, 2) == expected


def test_a_time_is_later_than_the_moment_even_by_a_fraction() -> None:
    when = parse_cron("0 3 * * *", "UTC")
    assert when.after(at("2026-01-01T03:00:00") - 0.001) == at("2026-01-01T03:00:00")
    assert when.after(at("2026-01-01T03:00:00")) == at("2026-01-02T03:00:00")
    assert when.after(at("2026-01-01T03:00:00") + 0.001) == at("2026-01-02T03:00:00")


def test_a_fixed_hour_that_the_clock_skips_is_made_up_for_once() -> None:
    times = firings("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00", 3)
    assert times == ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]


def test_a_fixed_hour_that_comes_twice_counts_once() -> None:
    times = firings("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2)
    assert times == ["2026-10-25T00:30", "2026-10-26T01:30"]


def test_who_asks_within_the_second_of_two_equal_hours_gets_no_time_of_the_first() -> None:
    for minute in range(60):
        moment = at("2026-10-25T01:00") + 60 * minute
        assert datetime.fromtimestamp(moment, BERLIN).hour == 2
        assert NIGHT.after(moment) == at("2026-10-26T01:30")


def test_what_is_done_all_day_goes_on_through_both_changes() -> None:
    for start in ("2026-03-28T23:30", "2026-10-24T23:30"):
        moment = at(start)
        when = parse_cron("*/30 * * * *", "Europe/Berlin")
        for _ in range(8):
            assert when.after(moment) == moment + 1800
            moment += 1800


def test_every_so_many_seconds_is_the_same_for_everybody() -> None:
    assert [Every(10).after(moment) for moment in (0, 3.5, 9.999, 10, 1e9 + 1)] == [10, 10, 10, 20, 1e9 + 10]
    assert parse_every("5m") == Every(300)


@pytest.mark.parametrize(
    "expression", ["* * * *", "* * * * * *", "60 * * * *", "x * * * *", "0 0 31 2 *", "*/0 * * * *"]
)
def test_an_expression_that_cannot_be_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"is not a cron expression|never fires"):
        parse_cron(expression, "UTC")


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "../../etc/passwd", "/etc/passwd", "\0", "Europe"])
def test_a_zone_that_is_not_known_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        parse_cron("0 3 * * *", zone)


def test_a_time_that_no_calendar_has_never_comes() -> None:
    assert NIGHT.after(at("9999-12-31T12:00")) == NEVER


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (100.0, None),
        (109.9, None),
        (110.0, Due(110, fires=True)),
        (115.0, Due(110, fires=True)),
        (125.0, Due(120, fires=True, coalesced=1)),
        (139.0, Due(130, fires=True, coalesced=2)),
        (141.0, Due(140, fires=True, missed=1, coalesced=2)),
        (170.0, Due(170, fires=True, missed=3, coalesced=3)),
    ],
)
def test_of_what_is_due_the_latest_fires_if_it_is_in_time(now: float, due: Due | None) -> None:
    assert find_due(Every(10), 100.0, now, grace=30.0) == due


def test_what_comes_later_than_its_grace_is_missed() -> None:
    assert find_due(Every(100), 100.0, 205.0, grace=5.0) == Due(200, fires=True)
    assert find_due(Every(100), 100.0, 205.1, grace=5.0) == Due(200, fires=False, missed=1)


def test_a_clock_that_went_back_makes_nothing_due() -> None:
    assert find_due(Every(10), 100.0, 50.0, grace=30.0) is None


def test_a_long_absence_is_not_counted_to_its_end() -> None:
    due = find_due(Every(1), 0.0, 1e9, grace=10.0)
    assert due == Due(1e9, fires=True, missed=MAX_COUNTED_FIRINGS, coalesced=9)
