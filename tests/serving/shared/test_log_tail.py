"""The last warnings of all processes."""

from __future__ import annotations

import os
from typing import Any

from serving.shared.log_tail import EVENT_BYTES, EVENTS, LogTail
from serving.storage.http import Outbound
from serving.telemetry.alerts import Alerts


def test_the_events_of_all_processes_are_seen_by_each_the_newest_first() -> None:
    tail = LogTail()
    tail.note("warning", {"event": "first", "reason": "why"})
    child = os.fork()
    if not child:
        tail.note("error", {"event": "second"})
        os._exit(0)
    os.waitpid(child, 0)
    second, first = tail.events()
    assert (second["event"], second["level"], second["pid"]) == ("second", "error", child)
    assert (first["event"], first["reason"], first["pid"]) == ("first", "why", os.getpid())


def test_only_the_last_ones_are_kept() -> None:
    tail = LogTail()
    for number in range(EVENTS + 7):
        tail.note("warning", {"event": str(number)})
    assert [one["event"] for one in tail.events()] == [str(number) for number in range(EVENTS + 6, 6, -1)]


def test_what_is_too_long_is_cut_and_half_an_event_is_not_shown() -> None:
    tail = LogTail()
    fields: dict[str, Any] = {f"field{number}": "\N{SNOWMAN}" * 300 for number in range(10)}
    tail.note("error", {"event": "long", **fields, "last": object(), "exc_info": True})
    (found,) = tail.events()
    assert (found["event"], found["exc_info"]) == ("long", "see the log")
    assert len(found["field0"]) == 201
    assert "field9" not in found
    tail.note("error", {"event": "torn"})
    tail._slot(1)[: EVENT_BYTES // 2] = b"x" * (EVENT_BYTES // 2)
    assert [one["event"] for one in tail.events()] == ["long"]


def test_warnings_and_errors_are_kept_whatever_level_is_logged() -> None:
    alerts = Alerts(Outbound(), "", "slack", name="here")
    for level in ("debug", "info", "warning", "error"):
        alerts.watch(None, level, {"event": level})
    assert [one["event"] for one in alerts.tail.events()] == ["error", "warning"]
