"""The log of predictions in Supabase; `serving/entities/supabase.sql` creates what it needs there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from serving.entities.record import MAX_INTEGER, in_utc
from serving.entities.supabase import SupabaseProject
from serving.errors import StoreUnavailable
from serving.monitoring.predictions.store import COLUMNS, LoggedPrediction, Wanted

PRUNED_AT_ONCE = 5000

_encode = msgspec.json.Encoder().encode


class SupabasePredictionStore(SupabaseProject):
    """A PredictionStore in a table of one project."""

    async def add(self, batch: Sequence[LoggedPrediction]) -> int:
        content = await asyncio.to_thread(_encode, batch)  # off the loop: megabytes take a while
        return await self._run("store_predictions", {"predictions": content.decode()}, int)

    async def get(self, request_id: str) -> list[LoggedPrediction]:
        found: list[LoggedPrediction] = []
        wanted = Wanted(request_id=request_id)
        while page := await self.find(wanted, PRUNED_AT_ONCE, found[-1].id if found else "", oldest_first=True):
            found += page
        return found

    async def find(
        self, wanted: Wanted, limit: int, after: str = "", *, oldest_first: bool = False
    ) -> list[LoggedPrediction]:
        parameters = {"wanted": _wanted(wanted), "after": after, "oldest_first": oldest_first, "most": limit}
        return list(map(_row, await self._run("find_predictions", parameters, list[dict[str, Any]])))

    async def delete(self, wanted: Wanted) -> int:
        parameters, deleted = {"wanted": _wanted(wanted), "most": PRUNED_AT_ONCE}, 0
        while gone := await self._run("delete_predictions", parameters, int):
            deleted += gone
        return deleted

    async def prune(self, keep_rows: int, before: datetime) -> int:
        _, end = Wanted(until=before).bounds()
        parameters = {"keep": keep_rows, "before_id": end, "most": PRUNED_AT_ONCE}
        return await self._run("prune_predictions", parameters, int)

    async def probe(self) -> None:
        await self.add([])


def _wanted(wanted: Wanted) -> str:
    least, end = wanted.bounds()
    given = {name: value for name in COLUMNS if (value := getattr(wanted, name)) is not None}
    return _encode(given | {"least": least, "end": end}).decode()


def _row(found: dict[str, Any]) -> LoggedPrediction:
    """Raises StoreUnavailable for a row that somebody else has written."""
    try:
        time = in_utc(datetime.fromisoformat(found["time"]))
        row = {name: _number(value) for name, value in found["row"].items()}
        return msgspec.convert(found | {"time": time, "row": row}, LoggedPrediction)
    except (ValueError, KeyError, AttributeError, msgspec.ValidationError) as error:
        raise StoreUnavailable("Supabase holds logged predictions of another form") from error


def _number(value: Any) -> Any:
    """A value as it was sent: PostgreSQL returns large floats without exponent, so they look like integers."""
    return float(value) if type(value) is int and abs(value) > MAX_INTEGER else value
