"""Stores of the log of predictions, each opened as another process would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.supabase import SupabaseServer
from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.monitoring.predictions.store import EPOCH, LoggedPrediction, PredictionStore, make_id
from serving.monitoring.predictions.supabase import SupabasePredictionStore
from tests.serving.entities.conftest import patient

__all__ = ["patient"]

Open = Callable[[], PredictionStore]


@pytest.fixture(params=["sqlite", "supabase"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, patient: None) -> AsyncIterator[Open]:
    opened: list[PredictionStore] = []
    if request.param == "supabase":
        server: SupabaseServer = request.getfixturevalue("shared_supabase")
        server.empty()

    def open_one() -> PredictionStore:
        if request.param == "supabase":
            opened.append(SupabasePredictionStore(server.url, server.key))
        else:
            opened.append(SQLitePredictionStore(tmp_path))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def store(open_store: Open) -> PredictionStore:
    return open_store()


def minute(number: float) -> datetime:
    return datetime(2026, 5, 1, tzinfo=UTC) + timedelta(minutes=number)


def logged(number: float, place: int = 0, **changes: Any) -> LoggedPrediction:
    """A row of that minute."""
    moment = minute(number)
    fields: dict[str, Any] = {
        "id": make_id((moment - EPOCH) // timedelta(microseconds=1), 7, round(number * 1000), place),
        "time": moment,
        "request_id": f"request-{number}",
        "place": place,
        "key": "reader",
        "model": "m",
        "version": "1",
        "verb": "predict",
        "row": {"x": 0.1 * number, "kind": "b", "flag": True, "missing": None},
        "answer": {"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}},
        "source": "miss",
        "milliseconds": 1.25,
        "entity": "",
    }
    return LoggedPrediction(**(fields | changes))
