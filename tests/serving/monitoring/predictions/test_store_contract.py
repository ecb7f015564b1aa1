"""The contract of every store of the log of predictions."""

from __future__ import annotations

from typing import Any

import pytest

from serving.monitoring.predictions.store import EVERY_ROW, LoggedPrediction, PredictionStore, Wanted, pages
from tests.serving.monitoring.predictions.conftest import Open, logged, minute

pytestmark = pytest.mark.anyio


async def test_rows_come_back_as_they_were(store: PredictionStore) -> None:
    rows = [
        logged(1, place=0),
        logged(1, place=1, row={"text": "é \U0001f600 \"'\\ \n", "large": 1e300, "whole": 3}, answer=0.1),
        logged(1, place=2, verb="explain", answer=None, entity="AAPL", key=""),
    ]
    assert await store.add(rows) == 3
    found = await store.get("request-1")
    assert found == rows
    assert type(found[0].row["flag"]) is bool


async def test_rows_that_come_again_are_kept_once(open_store: Open) -> None:
    rows = [logged(number) for number in range(3)]
    await open_store().add(rows)
    assert await open_store().add([*rows, logged(3)]) == 1
    assert len(await open_store().find(EVERY_ROW, 100)) == 4
    assert await open_store().add([]) == 0


async def test_requests_that_have_one_id_are_all_found(store: PredictionStore) -> None:
    rows = [logged(2, request_id="chosen"), logged(1, request_id="chosen"), logged(1.5, request_id="other")]
    await store.add(rows)
    assert await store.get("chosen") == [rows[1], rows[0]]
    assert await store.get("unknown") == []


async def test_rows_are_found_in_the_order_of_their_times_page_by_page(store: PredictionStore) -> None:
    rows = [logged(number, place) for number in range(5) for place in range(2)]
    await store.add([rows[index] for index in (3, 0, 9, 1, 7, 2, 8, 5, 4, 6)])
    assert await store.find(EVERY_ROW, 3) == rows[:-4:-1]
    assert await store.find(EVERY_ROW, 100, rows[-3].id) == rows[-4::-1]
    assert await store.find(EVERY_ROW, 3, rows[1].id, oldest_first=True) == rows[2:5]


WANTED: list[tuple[Wanted, list[int]]] = [
    (Wanted(model="a"), [0, 1, 2]),
    (Wanted(model="a", version="2"), [2]),
    (Wanted(model="c"), []),
    (Wanted(verb="explain"), [1]),
    (Wanted(entity="E"), [3]),
    (Wanted(entity="", model="b"), [4]),
    (Wanted(key="other"), [4]),
    (Wanted(request_id="request-2"), [2]),
    (Wanted(since=minute(3)), [3, 4]),
    (Wanted(until=minute(3)), [0, 1, 2]),
    (Wanted(since=minute(1), until=minute(2)), [1]),
    (Wanted(since=minute(1), model="a", version="1"), [1]),
    (EVERY_ROW, [0, 1, 2, 3, 4]),
]


def five() -> list[LoggedPrediction]:
    changes: list[dict[str, Any]] = [
        {"model": "a"},
        {"model": "a", "verb": "explain"},
        {"model": "a", "version": "2"},
        {"model": "b", "entity": "E"},
        {"model": "b", "key": "other"},
    ]
    return [logged(number, **changed) for number, changed in enumerate(changes)]


@pytest.mark.parametrize(("wanted", "expected"), WANTED)
async def test_what_is_wanted_is_found_and_deleted_and_nothing_else(
    store: PredictionStore, wanted: Wanted, expected: list[int]
) -> None:
    rows = five()
    await store.add(rows)
    assert await store.find(wanted, 100, oldest_first=True) == [rows[index] for index in expected]
    assert await store.delete(wanted) == len(expected)
    left = [row for index, row in enumerate(rows) if index not in expected]
    assert await store.find(EVERY_ROW, 100, oldest_first=True) == left


async def test_all_pages_together_are_all_rows(store: PredictionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.monitoring.predictions.store.PAGE_ROWS", 3)
    rows = [logged(number) for number in range(7)]
    await store.add(rows)

    async def read(limit: int | None = None, *, oldest_first: bool = False) -> list[LoggedPrediction]:
        return [row async for page in pages(store, EVERY_ROW, limit, oldest_first=oldest_first) for row in page]

    assert await read(oldest_first=True) == rows
    assert await read(5) == rows[:1:-1]
    assert await read(6) == rows[:0:-1]


async def test_old_rows_and_rows_too_many_are_pruned(store: PredictionStore) -> None:
    rows = [logged(number) for number in range(10)]
    await store.add(rows)

    async def prune(keep_rows: int, before: float) -> None:
        while await store.prune(keep_rows, minute(before)):
            pass

    await prune(100, 3)
    assert await store.find(EVERY_ROW, 100, oldest_first=True) == rows[3:]
    await prune(4, 0)
    assert await store.find(EVERY_ROW, 100, oldest_first=True) == rows[6:]


async def test_a_store_that_works_says_so(store: PredictionStore) -> None:
    await store.probe()
    assert store.state in ("closed", "disabled")
