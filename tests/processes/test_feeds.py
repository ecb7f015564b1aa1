"""Feeds on the real service: a schedule polls a document into the records of entities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.market import market_records
from harness.processes import eventually
from harness.servers import file_server
from harness.service import Service
from serving.errors import InvalidSetting
from serving.settings import Settings
from tests.conftest import Run


def test_a_scheduled_feed_becomes_predictions_of_its_entities(models: Path, tmp_path: Path) -> None:
    days = [(day, values) for share, day, values in market_records() if share == "AAPL"][:3]
    rows = [{"ticker": "FEED", "date": day, **values} for day, values in days] + [{"ticker": "", "date": "never"}]
    (tmp_path / "days.json").write_text(json.dumps({"rows": rows}))
    with file_server(tmp_path) as address:
        feed = {"name": "days", "url": f"{address}/days.json", "format": "json", "rows": "rows"}
        feed |= {"entity": "ticker", "time": "date"}
        environ = {"MODEL_DIR": str(models), "WEB_CONCURRENCY": "1", "FEEDS": json.dumps([feed])}
        with Service(environ | {"SCHEDULES": "days: every 1s grace 30: poll days"}) as service:
            assert eventually(lambda: len(service.events("Feed polled")) >= 2)
            first, again = service.events("Feed polled")[:2]
            assert (first["records"], first["new"]) == (3, 3)
            assert again["new"] == 0
            assert service.events("Feed has bad rows")[0]["refused"] == 1
            answer = service.get("/v1/entities/FEED/predictions?models=market-direction")
    (model,) = answer["models"]
    assert (model["model"], len(model["predictions"])) == ("market-direction", 3), answer


def test_a_schedule_that_polls_an_unknown_feed_is_refused_by_name(run: Run, models: Path) -> None:
    checked = run("check", MODEL_DIR=str(models), SCHEDULES="days: every 1s: poll nothing")
    assert checked.returncode == 1
    assert "SCHEDULES: 'days': poll knows no 'nothing'" in checked.stderr


def test_feeds_that_cannot_be_are_refused_at_the_start() -> None:
    with pytest.raises(InvalidSetting, match="FEEDS"):
        Settings.from_env({"FEEDS": "[{}]"})
