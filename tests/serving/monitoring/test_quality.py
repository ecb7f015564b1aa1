"""The quality of live versions, from outcomes in a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.entities.sqlite import SQLiteEntityStore
from serving.errors import StoreUnavailable
from serving.monitoring.quality import LiveQuality
from tests.serving.entities.conftest import outcome

pytestmark = pytest.mark.anyio


class Live:
    """A registry whose live versions are of these tasks, by name."""

    def __init__(self, **tasks: str) -> None:
        self.models = [
            SimpleNamespace(name=name, version="1", manifest=SimpleNamespace(task=task)) for name, task in tasks.items()
        ]

    def live(self) -> list[Any]:
        return self.models


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteEntityStore]:
    store = SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=10)
    yield store
    await store.close()


def quality_of(store: SQLiteEntityStore, **tasks: str) -> LiveQuality:
    return LiveQuality(Live(**tasks), store)  # type: ignore[arg-type]


async def test_a_classifier_has_an_accuracy_and_a_regression_an_error(store: SQLiteEntityStore) -> None:
    said = ["yes", "no", None, "yes"]
    await store.add_outcomes([outcome(number, "wine", prediction=said[number]) for number in range(4)])
    await store.add_outcomes([outcome(number, "price", outcome=2.0, prediction=float(number)) for number in range(2)])
    quality = quality_of(store, wine="classification", price="regression", silent="regression")
    assert await quality.take() == {
        "wine": {"version": "1", "outcomes": 3, "accuracy": pytest.approx(2 / 3)},
        "price": {"version": "1", "outcomes": 2, "mean_absolute_error": 1.5},
        "silent": {"version": "1", "outcomes": 0},
    }


async def test_metrics_stay_while_the_store_is_unavailable(
    store: SQLiteEntityStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    monkeypatch.setattr("serving.monitoring.quality.FRESH_SECONDS", -1.0)
    await store.add_outcomes([outcome(1, "wine", prediction="yes")])
    quality = quality_of(store, wine="classification")
    before = await quality.take()
    monkeypatch.setattr(store, "judged", fail)
    assert await quality.take() == before
    assert before["wine"]["accuracy"] == 1.0
    assert "Outcomes cannot be read" in capsys.readouterr().out
