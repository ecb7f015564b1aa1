"""The log of predictions in a SQLite file, the default without Supabase; its statements are in `sqlite.sql`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any

import msgspec

from serving.monitoring.predictions.store import COLUMNS, LoggedPrediction, Wanted
from serving.storage.sqlite import Database, reads, writes
from serving.storage.statements import statements

_sql = statements(__file__, "sqlite.sql")

PRUNED_AT_ONCE = 2000
"""Rows; their pages are overwritten, which takes some 10 us a row."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class SQLitePredictionStore:
    """A PredictionStore in `predictions.db`, shared by the processes of this box."""

    state = "disabled"

    def __init__(self, directory: Path) -> None:
        self._database = Database(directory / "predictions.db", (_sql("schema_1"),))

    @writes
    def add(self, connection: Connection, batch: Sequence[LoggedPrediction]) -> int:
        return connection.executemany(_sql("add"), map(_columns, batch)).rowcount if batch else 0

    @reads
    def get(self, connection: Connection, request_id: str) -> list[LoggedPrediction]:
        return [_row(found) for found in connection.execute(_sql("of_request"), (request_id,))]

    @reads
    def find(
        self, connection: Connection, wanted: Wanted, limit: int, after: str = "", *, oldest_first: bool = False
    ) -> list[LoggedPrediction]:
        conditions, named = _conditions(wanted)
        if after:
            conditions += f" and id {'>' if oldest_first else '<'} :after"
        statement = _sql("find").format(conditions=conditions, order="asc" if oldest_first else "desc")
        found = connection.execute(statement, named | {"limit": limit, "after": after})
        return [_row(one) for one in found]

    async def delete(self, wanted: Wanted) -> int:
        deleted = await self._delete(wanted)
        await self._database.erase()
        return deleted

    @writes
    def _delete(self, connection: Connection, wanted: Wanted) -> int:
        conditions, named = _conditions(wanted)
        return connection.execute(_sql("delete").format(conditions=conditions), named).rowcount

    @writes
    def prune(self, connection: Connection, keep_rows: int, before: datetime) -> int:
        _, end = Wanted(until=before).bounds()
        pruned = connection.execute(_sql("prune_time"), (end, PRUNED_AT_ONCE)).rowcount
        (count,) = connection.execute(_sql("count")).fetchone()
        excess = min(PRUNED_AT_ONCE, count - keep_rows)
        return pruned + (connection.execute(_sql("prune_rows"), (excess,)).rowcount if excess > 0 else 0)

    async def probe(self) -> None:
        await self._database.probe()

    async def close(self) -> None:
        await self._database.close()


def _conditions(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """What is wanted as SQL, and the values that it names."""
    least, end = wanted.bounds()
    given = {name: value for name in COLUMNS if (value := getattr(wanted, name)) is not None}
    named = [f"{name} = :{name}" for name in given]
    if wanted.entity:
        named.append("entity <> ''")  # or the index is not used
    return " and ".join(["id >= :least and id < :end", *named]), {**given, "least": least, "end": end}


def _columns(one: LoggedPrediction) -> tuple[Any, ...]:
    return (
        one.id,
        one.time.isoformat(timespec="milliseconds"),
        one.request_id,
        one.place,
        one.key,
        one.model,
        one.version,
        one.verb,
        _encode(one.row).decode(),
        _encode(one.answer).decode(),
        one.source,
        one.milliseconds,
        one.entity,
    )


def _row(found: Row) -> LoggedPrediction:
    columns = dict(zip(found.keys(), found, strict=True))
    columns |= {name: _decode(columns[name]) for name in ("row", "answer")}
    return LoggedPrediction(**columns | {"time": datetime.fromisoformat(columns["time"])})
