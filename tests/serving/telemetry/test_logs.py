"""Lines of the log: JSON for machines, columns for people, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import sys

import pytest
import structlog

from serving.telemetry.logs import Console, configure, renderer

EVENT = {"event": "Worker started", "pid": 7, "level": "info", "timestamp": "2026-01-02T03:04:05.678901Z"}


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TZ", "UTC")
    return Console()


def test_a_line_for_people_begins_with_time_level_and_event(console: Console) -> None:
    line = console(dict(EVENT)).decode()
    assert line.split() == [line[:8], "[info", "]", "Worker", "started", "pid=7"]
    assert line[2] == line[5] == ":"


def test_details_stand_in_one_column_and_empty_ones_are_left_out(console: Console) -> None:
    events = ("Short", "Much longer")
    lines = [console(EVENT | {"event": event, "key": "", "client": None}).decode() for event in events]
    assert lines[0].index("pid=7") == lines[1].index("pid=7")
    assert "client" not in lines[0]
    assert "key" not in lines[0]


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nWorker stopped", "\r", "\u2028", "\x9b31m", "\x07"])
def test_text_of_others_cannot_command_the_terminal(console: Console, text: str) -> None:
    line = console(EVENT | {"event": f"Refused {text}", "reason": text, "exception": f"Error: {text}"}).decode()
    first, *trace = line.split("\n")
    assert first.isprintable()
    assert all(part.isprintable() and part.startswith("  ") for part in trace if part)


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert b"\x1b[" in Console()(dict(EVENT))
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[" not in Console()(dict(EVENT))


def test_a_terminal_has_lines_for_people_and_all_else_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(renderer("auto")(dict(EVENT))) == EVENT
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(renderer("auto"), Console)
    assert json.loads(renderer("json")(dict(EVENT))) == EVENT


def fail() -> None:
    raise ValueError("as planned")


def test_the_traceback_of_an_error_is_shown(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    try:
        configure("info", "console")
        try:
            fail()
        except ValueError:
            structlog.get_logger().exception("Request failed")
    finally:
        structlog.reset_defaults()
    shown = capfdbinary.readouterr().out.decode()
    assert "Request failed" in shown.splitlines()[0]
    assert "ValueError: as planned" in shown
