"""The text of SCHEDULES: what it says, and what is refused by name."""

from __future__ import annotations

import pytest

from serving.errors import InvalidSetting
from serving.jobs.job import JobRequest
from serving.schedules.parse import Action, Schedule, parse_schedules
from serving.schedules.when import Every, parse_cron
from tests.serving.schedules.conftest import toy_job


def poll(feed: str) -> JobRequest:
    return JobRequest(operation=f"poll {feed}", inputs=[b""])


TOY, POLL = Action(toy_job), Action(poll, known=("http://a:80/x", "prices"))
ACTIONS: dict[str, Action] = {"toy": TOY, "poll": POLL}


def test_entries_say_when_and_what() -> None:
    text = """nightly: 0 3 * * 1 in Europe/Berlin grace 600: toy;
        prices : every 30s :  poll  http://a:80/x
        noon: 0 12 * * *: toy lock;"""
    assert parse_schedules(text, ACTIONS, grace=60.0) == (
        Schedule("nightly", parse_cron("0 3 * * 1", "Europe/Berlin"), TOY, (), 600.0, "toy"),
        Schedule("prices", Every(30), POLL, ("http://a:80/x",), 60.0, "poll http://a:80/x"),
        Schedule("noon", parse_cron("0 12 * * *", "UTC"), TOY, ("lock",), 60.0, "toy lock"),
    )


@pytest.mark.parametrize("text", ["", " ", ";", "\n;\n"])
def test_no_entries_are_no_schedules(text: str) -> None:
    assert parse_schedules(text, ACTIONS, grace=60.0) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "an entry is like"),
        ("x: every 1s", "an entry is like"),
        ("X: every 1s: toy", "a name has up to 63"),
        (f"{'x' * 64}: every 1s: toy", "a name has up to 63"),
        ("x: every 1s: cook", "unknown action 'cook'; use poll, toy"),
        ("x: every 1s:", "unknown action ''"),
        ("x: every 1s: poll", "the action is written 'poll FEED'"),
        ("x: every 1s: poll a b", "the action is written 'poll FEED'"),
        ("x: every 1s: poll shares", "poll knows no 'shares'; it knows http://a:80/x, prices"),
        ("x: 0 3 * *: toy", "neither a cron expression of five fields"),
        ("x: : toy", "neither a cron expression of five fields"),
        ("x: every: toy", "neither a cron expression of five fields"),
        ("x: 61 3 * * *: toy", "'61 3 \\* \\* \\*' is not a cron expression: Bad minute"),
        ("x: 0 0 30 2 *: toy", r"is not a cron expression|never fires"),
        ("x: 0 3 * * * in Europe/Nowhere: toy", "unknown time zone 'Europe/Nowhere'"),
        ("x: 0 3 * * * in: toy", "may follow the time"),
        ("x: 0 3 * * * at noon: toy", "may follow the time"),
        ("x: 0 0 3 * * *: toy", "may follow the time"),
        ("x: every 30: toy", "like 30s, 5m or 2h"),
        ("x: every 0s: toy", "like 30s, 5m or 2h"),
        ("x: every 25h: toy", "like 30s, 5m or 2h"),
        ("x: every 1s in UTC: toy", "'every' has no time zone"),
        ("x: every 1s grace 0: toy", "grace must be a number of seconds from 1 to 604800"),
        ("x: every 1s grace nan: toy", "grace must be a number of seconds"),
        ("x: every 1s grace soon: toy", "grace must be a number of seconds"),
        ("x: every 1s: toy; x: every 2s: toy", "appears twice"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^SCHEDULES: '[Xx]+': .*{reason}") as refusal:
        parse_schedules(text, ACTIONS, grace=60.0)
    assert len(str(refusal.value)) < 200
