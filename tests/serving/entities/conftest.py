"""Stores of both kinds over the same rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.supabase import SupabaseServer
from serving.entities import supabase
from serving.entities.record import Outcome, Record, make_record
from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import EntityStore
from serving.entities.supabase import SupabaseEntityStore
from tests.serving.conftest import PATIENCE

KEEP = 5
Open = Callable[..., EntityStore]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that is well: a busy machine must not make it look dead."""
    monkeypatch.setattr(supabase, "TIMEOUT", httpx.Timeout(PATIENCE))
    monkeypatch.setattr(supabase, "DEADLINE_SECONDS", PATIENCE)


@pytest.fixture(params=["sqlite", "supabase"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, patient: None) -> AsyncIterator[Open]:
    """Each call opens what another process would; it takes options of the stores."""
    opened: list[EntityStore] = []
    if request.param == "supabase":
        server: SupabaseServer = request.getfixturevalue("shared_supabase")
        server.empty()

    def open_one(**options: Any) -> EntityStore:
        store: EntityStore
        if request.param == "supabase":
            store = SupabaseEntityStore(server.url, server.key, keep_records=KEEP, keep_outcomes=KEEP, **options)
        else:
            store = SQLiteEntityStore(tmp_path, keep_records=KEEP, keep_outcomes=KEEP, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def store(open_store: Open) -> EntityStore:
    return open_store()


def day(number: int) -> datetime:
    return datetime(2024, 2, 27, tzinfo=UTC) + timedelta(days=number)


def record(number: int, entity: str = "a", **values: Any) -> Record:
    """Of the day of that number."""
    return make_record(entity, {"x": float(number)} | values, day(number).isoformat(), str(number))


def outcome(number: int, model: str = "m", **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "model": model,
        "version": "1",
        "id": str(number),
        "time": day(number),
        "instance": {"x": 0.1 * number, "kind": "b", "flag": True, "missing": None},
        "outcome": "yes",
        "prediction": "no",
    }
    return Outcome(**(fields | changes))
