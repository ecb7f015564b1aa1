"""Records and outcomes in Supabase, through its official client; `supabase.sql` creates what it needs there.

Context: with its defaults the client waits seven seconds for a dead server and two minutes for a hung one, and then
tries again; and httpx 0.28 loses a place in its pool when a request is cancelled, or has waited too long for a place,
until there is none left.
Decision: one httpx client with short timeouts for all requests, no second attempts, a guard that runs each call in a
task that is never cancelled, and no more calls at once than there are connections.
Consequence: a caller has its answer or a refusal within three seconds at worst, and at once while the breaker is open.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import httpx
import msgspec
import structlog
from postgrest.exceptions import APIError
from supabase import AsyncClient
from supabase.lib.client_options import AsyncClientOptions

from serving.entities.record import MAX_INTEGER, Entity, Judged, Outcome, Period, Record, Span, in_utc, stored_record
from serving.entities.store import UNKNOWN_AFTER, Added, Deleted, other_kind
from serving.errors import InvalidRecord, InvalidRequest, StoreFull, StoreUnavailable
from serving.storage.guard import Breaker, Guard, NotTried, PerProcess, ServerUnavailable

RECORDS, OUTCOMES = "entity_records", "model_outcomes"

TIMEOUT = httpx.Timeout(2.0, connect=0.5, pool=0.25)
CALLS_AT_ONCE = 10
LIMITS = httpx.Limits(max_connections=CALLS_AT_ONCE, max_keepalive_connections=5)
BUSY_SECONDS = 0.25
"""Seconds that a call waits for others to end."""

DEADLINE_SECONDS = 3.0
"""Seconds for a whole call; without it a server that sends its answer byte by byte, each in time, is never given up."""

PAGE_ROWS = 1000
"""Supabase cuts longer answers here; a project may have it cut shorter ones, so a short page need not be the last."""

UNWELL = (httpx.HTTPError, httpx.InvalidURL, APIError, ValueError, TypeError, KeyError, AttributeError)
"""The last four are raised by the client, or by us, when an answer has the wrong form."""

SQLSTATE_CHARACTERS = 5

OUR_FAULT = ("22", "23")
"""Classes of SQLSTATE: PostgreSQL is well, and refuses the data of this call."""

OLD_SCHEMA = ("42703", "42883", "42P01", "PGRST200", "PGRST202", "PGRST204", "PGRST205")
"""A column, function or table is missing."""

Call = Callable[[AsyncClient], Awaitable[Any]]
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    """The clients of one process, and the semaphore that limits its calls."""

    http: httpx.AsyncClient
    client: AsyncClient
    places: asyncio.Semaphore

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take one of the CALLS_AT_ONCE places, or raise StoreUnavailable, which says nothing about the server."""
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                await self.places.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("Supabase is busy") from error
        try:
            yield
        finally:
            self.places.release()


class _Answer(msgspec.Struct):
    """What became of records: the fields of Added, or why nothing is stored."""

    stored: int = 0
    present: int = 0
    dropped: int = 0
    refused: Literal["", "full", "kind"] = ""
    entity: str = ""
    kind: str = ""


class _OfWriter(msgspec.Struct):
    """What a writer had stored."""

    entities: list[str]
    records: int
    outcomes: int


class _DataRefused(Exception):
    """The server is well, and refuses what a call would store."""


class _OldSchema(Exception):
    """The server is well, and lacks something that `supabase.sql` creates."""


class SupabaseProject:
    """The tables of one project. Building it connects to nothing, so it may be forked."""

    def __init__(self, url: str, key: str, breaker: Breaker | None = None) -> None:
        """`key` is the service role's."""
        self._url = url
        self._key = key
        self._guard = Guard(
            DEADLINE_SECONDS,
            unwell=UNWELL,
            refused=(_DataRefused, _OldSchema, InvalidRecord),
            breaker=breaker or Breaker(max_cool_down=3.0),
            reason=_reason,
            events=("Supabase is unavailable", "Supabase is back"),
        )
        self._certificates = ssl.create_default_context()  # before the fork: it takes a while, and 1 MB
        self._connection = PerProcess(self._connect)
        self._said_old = False

    @property
    def state(self) -> str:
        return self._guard.state

    async def close(self) -> None:
        connection = self._connection.release()
        if connection is not None:
            await self._guard.settle(DEADLINE_SECONDS)
            await connection.http.aclose()

    async def _run(self, function: str, parameters: dict[str, Any], kind: type[T]) -> T:
        """Return what a function of the schema returns, as a `kind`. Raises StoreUnavailable, InvalidRequest."""
        answer = await self._ask(lambda client: _result(client.rpc(function, parameters)), lambda found: found)
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise StoreUnavailable(f"Supabase answers {function} in a form that is not known") from error

    async def _ask(self, call: Call, read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the answer. Raises StoreUnavailable."""

        async def attempt() -> T:
            connection = self._connection.get()
            async with connection.place():
                try:
                    return read(await call(connection.client))
                except APIError as error:
                    raise _kind_of(error) from error

        try:
            return await self._guard.run(attempt)
        except _DataRefused:
            raise InvalidRequest("the store refuses these values") from None
        except _OldSchema as error:
            if not self._said_old:
                self._said_old = True
                log.error("Supabase schema is old", code=str(error))
            raise StoreUnavailable("the schema in Supabase is older than this version: run supabase.sql") from error
        except NotTried:
            raise StoreUnavailable("Supabase is unavailable") from None
        except ServerUnavailable as error:
            raise StoreUnavailable(f"Supabase is unavailable: {error}") from error

    def _connect(self) -> _Connection:
        http = httpx.AsyncClient(timeout=TIMEOUT, limits=LIMITS, verify=self._certificates)
        options = AsyncClientOptions(
            httpx_client=http, postgrest_client_retry=False, auto_refresh_token=False, persist_session=False
        )
        return _Connection(http, AsyncClient(self._url, self._key, options), asyncio.Semaphore(CALLS_AT_ONCE))


class SupabaseEntityStore(SupabaseProject):
    """An EntityStore in two tables of one project."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        keep_records: int,
        keep_outcomes: int,
        keep_in_all: int = 1_000_000,
        breaker: Breaker | None = None,
    ) -> None:
        """Keep `keep_records` of each entity, `keep_outcomes` of each model, and `keep_in_all` records in all.

        `key` is the service role's.
        """
        super().__init__(url, key, breaker)
        self._keep_records = keep_records
        self._keep_outcomes = keep_outcomes
        self._keep_in_all = keep_in_all

    async def add_records(self, records: Sequence[Record], kind: str | None = None, writer: str = "") -> Added:
        owned = [one.of(writer) for one in records]
        rows = [{"entity": one.entity, "id": one.id, "time": one.time, "data": one.values} for one in owned]
        parameters = {
            "records": await asyncio.to_thread(_encode, rows),  # off the loop: megabytes take a while
            "keep": self._keep_records,
            "keep_in_all": self._keep_in_all,
            "of_kind": kind,
            "by_writer": writer,
        }
        answer = await self._run("store_entity_records", parameters, _Answer)
        if answer.refused == "full":
            raise StoreFull
        if answer.refused == "kind":
            raise InvalidRequest(other_kind(answer.entity, answer.kind))
        return Added(answer.stored, answer.present, answer.dropped)

    async def newest(self, entity: str, limit: int, after: str | None = None) -> list[Record]:
        def select(client: AsyncClient) -> Any:
            return client.table(RECORDS).select("number,entity,id,time,data,kind").eq("entity", entity)

        last = None
        if after is not None:
            found = await self._ask(lambda client: _result(select(client).eq("id", after)), list[Any])
            if not found:
                raise InvalidRequest(UNKNOWN_AFTER)
            last = found[0]
        return await self._pages(select, limit, _record, _before_in_time, ("time", "number"), last)

    async def entities(self, limit: int, after: str = "", kind: str | None = None) -> list[Entity]:
        parameters = {"after": after, "of_kind": kind, "most": limit}
        return await self._run("list_entities", parameters, list[Entity])

    async def delete_records(self, entity: str, before: datetime | None = None, writer: str | None = None) -> int:
        moment = None if before is None else before.isoformat()
        parameters = {"of_entity": entity, "before": moment, "by_writer": writer}
        return await self._run("delete_entity_records", parameters, int)

    async def delete_entity(self, entity: str, writer: str | None = None) -> Deleted:
        return await self._run("delete_entity", {"of_entity": entity, "by_writer": writer}, Deleted)

    async def delete_writer(self, writer: str) -> tuple[list[str], Deleted]:
        gone = await self._run("delete_writer", {"by_writer": writer}, _OfWriter)
        return gone.entities, Deleted(gone.records, gone.outcomes)

    async def add_outcomes(self, outcomes: Sequence[Outcome], writer: str = "") -> Added:
        parameters = {
            "outcomes": await asyncio.to_thread(_encode, outcomes),
            "keep": self._keep_outcomes,
            "by_writer": writer,
        }
        return await self._run("store_model_outcomes", parameters, Added)

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        def select(client: AsyncClient) -> Any:
            return client.table(OUTCOMES).select("*").eq("model", model)

        return await self._outcomes(select, limit)

    async def outcomes_of_entity(self, entity: str, limit: int) -> list[Outcome]:
        def select(client: AsyncClient) -> Any:
            return client.table(OUTCOMES).select("*").eq("entity", entity)

        return await self._outcomes(select, limit)

    async def _outcomes(self, select: Callable[[AsyncClient], Any], limit: int) -> list[Outcome]:
        found = await self._pages(select, limit, _outcome, _before, ("number",))
        outcomes = [one for one in found if one is not None]
        if len(outcomes) < len(found):
            log.warning("Stored outcomes are not valid", outcomes=len(found) - len(outcomes))
        return outcomes

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        def select(client: AsyncClient) -> Any:
            query = client.table(OUTCOMES).select("number,outcome,prediction,probabilities").eq("model", model)
            return query.eq("version", version).not_.is_("prediction", "null")

        return await self._pages(select, limit, _judged, _before, ("number",))

    async def quality(self, model: str, span: Span, since: datetime, version: str | None = None) -> list[Period]:
        parameters = {"of_model": model, "of_span": span, "since": since.isoformat(), "of_version": version}
        return await self._run("list_model_quality", parameters, list[Period])

    async def mark_quality(self, model: str, version: str, *, is_low: bool) -> bool:
        parameters = {"of_model": model, "of_version": version, "is_low": is_low}
        return await self._run("mark_model_quality", parameters, bool)

    async def _pages(
        self,
        select: Callable[[AsyncClient], Any],
        limit: int,
        read: Callable[[Any], T],
        before: Callable[[Any, Any], Any],
        order: tuple[str, ...],
        last: Any = None,
    ) -> list[T]:
        """Return `limit` rows in the descending `order`, after the row `last`: `before` narrows a query to these."""
        found: list[T] = []

        def call(client: AsyncClient) -> Awaitable[Any]:
            query = select(client) if last is None else before(select(client), last)
            for column in order:
                query = query.order(column, desc=True)
            return _result(query.limit(min(PAGE_ROWS, limit - len(found))))

        while len(found) < limit:
            page, last = await self._ask(call, lambda rows: ([read(row) for row in rows], rows[-1] if rows else None))
            if not page:
                break
            found += page
        return found

    async def probe(self) -> None:
        await self.add_records([])

    async def risk(self) -> str | None:
        return None  # counting all rows of a table that others may write takes too long


def _encode(rows: Sequence[Any]) -> str:
    return msgspec.json.encode(rows).decode()


async def _result(query: Any) -> Any:
    return (await query.execute()).data


def _reason(error: Exception) -> str:
    """Return the error's kind and code: its text may quote the URL, or the data that was sent."""
    return f"{type(error).__name__} {error.code}" if isinstance(error, APIError) else type(error).__name__


def _before(query: Any, last: Any) -> Any:
    """The rows that were stored before that row."""
    return query.lt("number", last["number"])


def _before_in_time(query: Any, last: Any) -> Any:
    """The rows of earlier times than that row, and of the same time those stored before it."""
    time, number = last["time"], last["number"]
    return query.or_(f'time.lt."{time}",and(time.eq."{time}",number.lt.{number})')


def _kind_of(error: APIError) -> Exception:
    """What an error of the server says: about the data of a call, about the schema, or that the server is unwell."""
    code = error.code or ""
    if len(code) == SQLSTATE_CHARACTERS and code.startswith(OUR_FAULT):
        return _DataRefused()
    return _OldSchema(code) if code in OLD_SCHEMA else error


def _record(row: Any) -> Record:
    return stored_record(row["entity"], row["id"], row["time"], _values(row["data"]), row["kind"])


def _values(data: Any) -> Any:
    """Return values as they were sent: PostgreSQL returns large floats without exponent, so they look like integers."""
    if not isinstance(data, dict):
        return data
    large = {name: float(value) for name, value in data.items() if type(value) is int and abs(value) > MAX_INTEGER}
    return data | large


def _judged(row: Any) -> Judged:
    return Judged(row["outcome"], row["prediction"], row["probabilities"])


def _outcome(row: Any) -> Outcome | None:
    """None for a row that somebody else has written."""
    try:
        return msgspec.convert(row | {"time": in_utc(datetime.fromisoformat(row["time"]))}, Outcome)
    except (ValueError, OverflowError):
        return None
