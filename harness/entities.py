"""Talks to a running service about entities and outcomes, as a client would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from examples.market import FEATURES, market_records
from harness.jobs import Answer, call
from harness.service import Service
from serving.entities.importing import import_records
from serving.entities.record import make_record
from serving.entities.sqlite import SQLiteEntityStore
from serving.entities.store import EntityStore

MARKET = ["market-direction", "market-range", "market-return", "market-volatility", "market-volume-surge"]


def import_market(source: EntityStore) -> None:
    """Store the records of the demo."""

    async def run() -> None:
        try:
            records = (make_record(share, values, day) for share, day, values in market_records())
            await import_records(source, records)
        finally:
            await source.close()

    asyncio.run(run())


def sqlite_source(directory: Path) -> EntityStore:
    """The store of a service over this data directory."""
    return SQLiteEntityStore(directory, keep_records=1000, keep_outcomes=1000)


def columns(number: int) -> dict[str, float]:
    """The columns of a day that may have been."""
    return dict.fromkeys(FEATURES, 0.01 + 0.001 * number)


def send_record(service: Service, entity: str, **record: Any) -> Answer:
    return post(service, f"/v1/entities/{entity}/records", record)


def ask(service: Service, entity: str, query: str = "", **headers: str) -> Answer:
    return call(service, "GET", f"/v1/entities/{entity}/predictions{query}", None, **headers)


def send_outcomes(service: Service, model: str, content: Any, **headers: str) -> Answer:
    return post(service, f"/v1/models/{model}/outcomes", content, **headers)


def post(service: Service, path: str, content: Any, **headers: str) -> Answer:
    return call(service, "POST", path, json.dumps(content).encode(), Content_Type="application/json", **headers)
