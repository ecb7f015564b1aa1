"""The quality of versions, from outcomes in a real store: of the latest ones, with its alert, and over time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.outputs import Layout, Target
from registry.quality import Scorer, add_up, metrics_of
from serving.entities.record import Outcome, now, start_of
from serving.entities.sqlite import SQLiteEntityStore
from serving.errors import StoreUnavailable
from serving.monitoring import quality as module
from serving.monitoring.quality import MIN_OUTCOMES, LiveQuality, QualityHistory
from tests.serving.conftest import until
from tests.serving.entities.conftest import outcome

pytestmark = pytest.mark.anyio

LAYOUTS = {
    "classification": Layout(("probabilities",), (Target(name="", classes=("no", "yes")),)),
    "regression": Layout(("value",)),
}


class Checked(LiveQuality):
    """One that says when it has checked everything."""

    async def is_idle(self) -> bool:
        return self._checking._task is not None and self._checking._task.done()


class Live:
    """A registry whose only versions are of these tasks, by name of the model."""

    def __init__(self, **tasks: str) -> None:
        self.models = [
            SimpleNamespace(
                name=name,
                version="1",
                manifest=SimpleNamespace(task=task, metrics={"accuracy": 0.95, "mean_absolute_error": 1.0}),
                layout=LAYOUTS[task],
            )
            for name, task in tasks.items()
        ]

    def live(self) -> list[Any]:
        return self.models

    def get(self, name: str, version: str | None = None) -> Any:
        assert version in (None, "1")
        return next(one for one in self.models if one.name == name)

    def versions(self, name: str) -> dict[str, Any]:
        return {"1": self.get(name)}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteEntityStore]:
    store = SQLiteEntityStore(tmp_path, keep_records=1, keep_outcomes=1000)
    yield store
    await store.close()


def quality_of(store: SQLiteEntityStore, alerts: list[str] | None = None, **tasks: str) -> Checked:
    said: list[str] = [] if alerts is None else alerts
    return Checked(Live(**tasks), store, tolerance=0.1, alert=lambda _kind, text: said.append(text))  # type: ignore[arg-type]


async def test_a_classifier_has_an_accuracy_and_a_regression_an_error(store: SQLiteEntityStore) -> None:
    said = ["yes", "no", None, "yes"]
    shares = {"no": 0.25, "yes": 0.75}
    await store.add_outcomes([outcome(number, "wine", prediction=said[number]) for number in range(4)])
    await store.add_outcomes([outcome(number, "price", outcome=2.0, prediction=float(number)) for number in range(2)])
    await store.add_outcomes([outcome(0, "tea", prediction="yes", probabilities=shares)])
    quality = quality_of(store, wine="classification", price="regression", silent="regression", tea="classification")
    assert await quality.take() == {
        "wine": {"version": "1", "outcomes": 3, "accuracy": pytest.approx(2 / 3)},
        "price": {"version": "1", "outcomes": 2, "mean_absolute_error": 1.5, "r2": 0.0},
        "silent": {"version": "1", "outcomes": 0},
        "tea": {"version": "1", "outcomes": 1, "accuracy": 1.0, "log_loss": pytest.approx(0.287682)},
    }


async def test_metrics_stay_while_the_store_is_unavailable(
    store: SQLiteEntityStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(module, "FRESH_SECONDS", -1.0)
    await store.add_outcomes([outcome(1, "wine", prediction="yes")])
    quality = quality_of(store, wine="classification")
    before = await quality.take()
    monkeypatch.setattr(store, "judged", fail)
    assert await quality.take() == before
    assert before["wine"]["accuracy"] == 1.0
    assert "Outcomes cannot be read" in capsys.readouterr().out


async def test_low_quality_is_alerted_once_and_again_only_after_it_was_good(
    store: SQLiteEntityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(module, "MAX_OUTCOMES", MIN_OUTCOMES)
    alerts: list[str] = []
    processes = [quality_of(store, alerts, wine="classification") for _ in range(2)]
    sent = 0

    async def send(count: int, accuracy: float) -> list[str]:
        """Send outcomes of which that share was predicted, have both processes look, and return new alerts."""
        nonlocal sent
        await store.add_outcomes(
            [
                outcome(sent + place, "wine", prediction="yes" if place < round(accuracy * count) else "no")
                for place in range(count)
            ]
        )
        sent += count
        before = len(alerts)
        for one in processes:
            one.wake(["wine", "other"])
            await until(one.is_idle)
        return alerts[before:]

    assert await send(MIN_OUTCOMES - 1, 0.0) == []
    (alert,) = await send(1, 0.0)
    assert alert == "The quality of wine/1 is low over its latest 200 outcomes: accuracy is 0, it was 0.95"
    assert (await processes[0].take())["wine"]["is_low"] is True
    assert await send(MIN_OUTCOMES, 0.5) == []  # still low
    assert await send(MIN_OUTCOMES, 0.88) == []  # between: neither low nor good
    assert await send(MIN_OUTCOMES, 0.5) == []
    assert await send(MIN_OUTCOMES, 0.95) == []  # good
    assert await send(MIN_OUTCOMES, 0.88) == []
    assert len(await send(MIN_OUTCOMES, 0.84)) == 1


def scored(number: int, hours: int, **changes: Any) -> Outcome:
    """An outcome of two days ago, so many hours later; every third is no."""
    share = (number % 10) / 10
    truth = "no" if number % 3 == 0 else "yes"
    shares = {"no": 1 - share, "yes": share}
    guess = "yes" if share > 0.5 else "no"
    sums = Scorer("classification", LAYOUTS["classification"]).sums(truth, guess, shares)
    fields: dict[str, Any] = {
        "time": start_of("day", now()) - timedelta(days=2) + timedelta(hours=hours),
        "outcome": truth,
        "prediction": guess,
        "probabilities": shares,
        "sums": sums,
    }
    return outcome(number, "wine", **(fields | changes))


async def test_the_history_shows_hours_and_days_that_add_up(store: SQLiteEntityStore) -> None:
    sent = [scored(number, number) for number in range(40)]
    await store.add_outcomes(sent)
    await store.add_outcomes([scored(100, 1, version="0")])
    history = QualityHistory(Live(wine="classification"), store)  # type: ignore[arg-type]
    by_day = await history.show("wine", "day", None, None)
    assert [(one["version"], one["live"], one["expected"] is None) for one in by_day["versions"]] == [
        ("0", False, True),
        ("1", True, False),
    ]
    days = by_day["versions"][1]
    assert [one["outcomes"] for one in days["periods"]] == [24, 16]
    for place, part in ((0, sent[:24]), (1, sent[24:])):
        expected = metrics_of(add_up(one.sums for one in part))
        assert {name: days["periods"][place][name] for name in expected} == expected
    hours = (await history.show("wine", "hour", sent[20].time, "1"))["versions"][0]
    assert len(hours["periods"]) == 20
    assert hours["periods"][0]["start"] == sent[20].time.isoformat()
    in_all = metrics_of(add_up(one.sums for one in sent[20:]))
    assert {name: hours[name] for name in ("outcomes", *in_all)} == {"outcomes": 20, **in_all}
    (curve,) = days["calibration"]
    assert curve["label"] == "yes"
    assert sum(point["outcomes"] for point in curve["points"]) == 40


async def test_hours_are_shown_for_a_month(store: SQLiteEntityStore) -> None:
    history = QualityHistory(Live(wine="classification"), store)  # type: ignore[arg-type]
    long_ago = now() - timedelta(days=32)
    await store.add_outcomes([scored(1, 0, time=long_ago)])
    shown = {span: (await history.show("wine", span, long_ago, None)) for span in ("hour", "day")}
    assert shown["hour"]["since"] > long_ago.isoformat()
    assert [len(one["versions"]) for one in shown.values()] == [0, 1]
