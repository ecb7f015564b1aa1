"""`forkserve entities`, and `forkserve add --kind`: on the store that the service uses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serving.cli.parser import parser
from serving.entities.notifier import topic_of
from serving.entities.record import make_record
from serving.entities.sqlite import SQLiteEntityStore
from serving.settings import Settings
from serving.stores import build_entity_store, build_event_log
from tests.serving.entities.conftest import outcome, record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def run(settings: Settings, *words: str) -> int:
    arguments = parser().parse_args(["entities", *words])
    status: int = arguments.run(arguments, settings)
    return status


def fill(settings: Settings) -> None:
    """Store records, an outcome and an event of `a`, and a record of `b`."""

    async def work() -> None:
        store, events = build_entity_store(settings), build_event_log(settings)
        await store.add_records([record(number) for number in range(3)] + [record(0, "b")])
        await store.add_outcomes([outcome(0, entity="a")])
        await events.append(topic_of("a"), "predictions", b"{}")
        await store.close()
        await events.close()

    asyncio.run(work())


def test_all_that_is_kept_of_an_entity_is_shown_and_deleted(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings)
    assert run(settings, "show", "a") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["record"]["id"] for line in lines[:3]] == ["2", "1", "0"]
    assert lines[3]["outcome"]["entity"] == "a"
    assert run(settings, "delete", "a") == 0
    assert capsys.readouterr().out == "a: deleted 3 records, 1 outcomes, 1 events, 0 logged predictions, 0 jobs\n"
    assert run(settings, "show", "a") == 1
    assert "nothing is kept of a" in capsys.readouterr().err
    assert run(settings, "show", "b") == 0


def test_records_are_imported_as_entities_of_a_kind(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "houses.csv"
    file.write_text("entity,time,x\nhome,2024-01-01,1\n")
    assert run(settings, "import", str(file), "--kind", "house") == 0
    assert capsys.readouterr().out == "imported 1 records, 1 of them new\n"
    store = SQLiteEntityStore(tmp_path, keep_records=9, keep_outcomes=9)

    async def read() -> list[str]:
        found = await store.newest("home", 9)
        await store.close()
        return [one.kind for one in found]

    assert asyncio.run(read()) == ["house"]


def test_records_that_are_not_kept_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "days.csv"
    file.write_text("entity,time,x\n" + "".join(f"a,2024-01-0{day},1\n" for day in range(1, 6)))
    assert run(Settings(data_dir=tmp_path, max_records_per_entity=2), "import", str(file)) == 0
    assert "imported 5 records, 2 of them new\n3 were not kept" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["show"], ["delete"], ["import"]])
def test_a_name_is_asked_for(settings: Settings, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings, *words) == 1
    assert f"entities {words[0]} needs" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["House", "a b", ""])
def test_what_is_no_kind_is_refused(settings: Settings, kind: str) -> None:
    with pytest.raises(SystemExit):
        run(settings, "import", "x.csv", "--kind", kind)
    with pytest.raises(SystemExit):
        parser().parse_args(["add", "model", "--name", "m", "--kind", kind])


def test_a_record_of_the_demo_is_in_the_past() -> None:
    from examples.market import market_records

    for share, day, values in market_records():
        make_record(share, values, day)
