"""While the store is unavailable: remembered records answer, and outcomes wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from serving.entities import outcomes
from serving.entities.outcomes import OutcomeWriter
from serving.entities.predictor import RecordReader
from serving.entities.record import Entity, Judged, Outcome, Period, Record, Span
from serving.entities.store import Added, Deleted
from serving.errors import DataQueueFull, InvalidRequest, StoreUnavailable
from tests.serving.conftest import until
from tests.serving.entities.conftest import outcome, record

pytestmark = pytest.mark.anyio


class FlakyStore:
    """A store in memory whose calls fail while it is `unavailable`."""

    state = "disabled"

    def __init__(self) -> None:
        self.unavailable = False
        self.records: list[Record] = []
        self.kept: list[Outcome] = []
        self.writers: list[str] = []
        self.refused = 0

    async def add_records(self, records: Sequence[Record], kind: str | None = None, writer: str = "") -> Added:
        raise NotImplementedError

    async def entities(self, limit: int, after: str = "", kind: str | None = None) -> list[Entity]:
        raise NotImplementedError

    async def delete_records(self, entity: str, before: datetime | None = None, writer: str | None = None) -> int:
        raise NotImplementedError

    async def delete_entity(self, entity: str, writer: str | None = None) -> Deleted:
        raise NotImplementedError

    async def delete_writer(self, writer: str) -> tuple[list[str], Deleted]:
        raise NotImplementedError

    async def newest(self, entity: str, limit: int, after: str | None = None) -> list[Record]:
        await self.probe()
        assert after is None
        return [one for one in self.records if one.entity == entity][:limit]

    async def add_outcomes(self, outcomes: Sequence[Outcome], writer: str = "") -> Added:
        await self.probe()
        if any(one.id == "odd" for one in outcomes):
            raise InvalidRequest("refused")
        self.writers.append(writer)
        self.kept += outcomes
        return Added(len(outcomes))

    async def outcomes_of_entity(self, entity: str, limit: int) -> list[Outcome]:
        raise NotImplementedError

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        raise NotImplementedError

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        raise NotImplementedError

    async def quality(self, model: str, span: Span, since: datetime, version: str | None = None) -> list[Period]:
        raise NotImplementedError

    async def mark_quality(self, model: str, version: str, *, is_low: bool) -> bool:
        raise NotImplementedError

    async def probe(self) -> None:
        if self.unavailable:
            self.refused += 1
            raise StoreUnavailable("unavailable")

    async def risk(self) -> str | None:
        return None

    async def close(self) -> None: ...


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


async def test_records_that_were_read_are_remembered(store: FlakyStore) -> None:
    store.records = [record(2), record(1), record(0)]
    reader = RecordReader(store, 2)
    assert await reader.newest("a", 1) == ([record(2)], False)
    store.unavailable = True
    assert await reader.newest("a", 5) == ([record(2), record(1)], True)
    with pytest.raises(StoreUnavailable):
        await reader.newest("b", 1)
    store.unavailable = False
    assert await reader.newest("a", 1) == ([record(2)], False)


async def test_what_is_remembered_is_bounded(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.entities.predictor.REMEMBERED_BYTES", 20_000)
    store.records = [record(number, f"entity-{number}") for number in range(300)]
    reader = RecordReader(store, 2)
    for one in store.records:
        await reader.newest(one.entity, 1)
    store.unavailable = True
    found = 0
    for one in store.records:
        try:
            found += len((await reader.newest(one.entity, 1))[0])
        except StoreUnavailable:
            continue
    assert 0 < found < 60


async def test_outcomes_that_may_be_late_are_written_soon(store: FlakyStore) -> None:
    writer = OutcomeWriter(store)
    writer.add([outcome(1), outcome(2)])
    assert store.kept == []
    await writer.close()
    assert store.kept == [outcome(1), outcome(2)]


async def test_outcomes_wait_until_the_store_is_back(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "RETRY_SECONDS", 0.005)
    store.unavailable = True
    writer = OutcomeWriter(store)
    writer.add([outcome(1)])
    await until(lambda: _now(store.refused > 2))
    writer.add([outcome(2)])
    store.unavailable = False
    await until(lambda: _now(not writer.queued))
    assert store.kept == [outcome(1), outcome(2)]
    await writer.close()


async def test_outcomes_that_the_store_refuses_cost_no_others(
    store: FlakyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = OutcomeWriter(store)
    good = [outcome(number) for number in range(5)]
    writer.add([*good[:2], outcome(9, id="odd"), *good[2:]])
    await writer.close()
    assert store.kept == good
    assert "Outcomes lost" in capsys.readouterr().out


async def test_outcomes_are_written_in_the_name_of_their_key(store: FlakyStore) -> None:
    writer = OutcomeWriter(store)
    writer.add([outcome(1)], "a")
    writer.add([outcome(2), outcome(3)], "b")
    writer.add([outcome(4)], "a")
    await writer.close()
    assert store.kept == [outcome(1), outcome(2), outcome(3), outcome(4)]
    assert store.writers == ["a", "b", "a"]


async def test_no_more_outcomes_wait_than_may(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_QUEUED", 2)
    monkeypatch.setattr(outcomes, "CLOSING_SECONDS", 0.01)
    store.unavailable = True
    writer = OutcomeWriter(store)
    writer.add([outcome(1)])
    with pytest.raises(DataQueueFull):
        writer.add([outcome(2), outcome(3)])
    writer.add([outcome(4)])
    await writer.close()
    assert writer.queued == 0
    assert [task for task in asyncio.all_tasks() if "OutcomeWriter" in repr(task)] == []


async def _now(value: bool) -> bool:  # noqa: FBT001 - what `until` asks again and again
    return value


async def test_waiting_outcomes_have_a_bound_in_bytes(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_QUEUED_BYTES", 1000)
    store.unavailable = True
    writer = OutcomeWriter(store)
    writer.add([outcome(1), outcome(2)], size=901)
    with pytest.raises(DataQueueFull):
        writer.add([outcome(3)], size=101)
    writer.add([outcome(3)], size=100)
    store.unavailable = False
    await writer.close()
    writer.add([outcome(4)], size=1000)
    await writer.close()
    assert store.kept == [outcome(number) for number in (1, 2, 3, 4)]
