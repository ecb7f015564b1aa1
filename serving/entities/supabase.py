"""Records and outcomes in Supabase, through its official client; `supabase.sql` is what has to be there.

Context: with its defaults the client waits seven seconds for a dead server and two minutes for a hung one, and tries
again on top; and httpx 0.28 loses a place in its pool when a request is cancelled, or has waited too long for a place,
until there is none left.
Decision: one httpx client with short timeouts of its own for all that is asked for, no second attempts, a breaker in
front; calls that run in tasks of their own, which nobody cancels, and no more of them than there are connections.
Consequence: who asks is answered, or refused, within three seconds at worst, and at once while the breaker is open.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

import httpx
import structlog
from postgrest.exceptions import APIError
from supabase import AsyncClient, acreate_client
from supabase.lib.client_options import AsyncClientOptions

from cache.breaker import Breaker
from serving.entities.record import MAX_INTEGER, Judged, Outcome, Record, Value, in_utc
from serving.errors import StoreUnavailable

RECORDS, OUTCOMES = "entity_records", "model_outcomes"

TIMEOUT = httpx.Timeout(2.0, connect=0.5, pool=0.25)
CALLS_AT_ONCE = 10
LIMITS = httpx.Limits(max_connections=CALLS_AT_ONCE, max_keepalive_connections=5)
BUSY_SECONDS = 0.25
"""How long a call waits for others to end."""

DEADLINE_SECONDS = 3.0
"""For a server that sends its answer by drops, each of them in time."""

PAGE = 1000
"""Rows of one answer: Supabase cuts longer ones here unless it is told otherwise."""

BROKEN = (httpx.HTTPError, httpx.InvalidURL, APIError, ValueError, TypeError, KeyError, AttributeError)
"""The last four are what the client, or we, make of an answer that is nothing like one."""

Call = Callable[[AsyncClient], Awaitable[Any]]
T = TypeVar("T")

log = structlog.get_logger(__name__)


class SupabaseEntityStore:
    """A Source in two tables of one project. Building it connects to nothing, so it may be forked."""

    def __init__(
        self, url: str, key: str, *, keep_records: int, keep_outcomes: int, breaker: Breaker | None = None
    ) -> None:
        """Of each entity `keep_records` are kept, of each model `keep_outcomes`; `key` is the service role's."""
        self._url = url
        self._key = key
        self._keep_records = keep_records
        self._keep_outcomes = keep_outcomes
        self._breaker = breaker or Breaker(max_cool_down=3.0)
        self._certificates = ssl.create_default_context()  # before the fork: it takes a while, and 1 MB
        self._process = 0
        self._http: httpx.AsyncClient | None = None
        self._client: AsyncClient | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self._inherited: list[object] = []

    @property
    def state(self) -> str:
        return self._breaker.state

    async def add_records(self, records: Sequence[Record]) -> int:
        rows = [
            {"entity": one.entity, "id": one.id, "time": one.time.isoformat(), "data": one.values} for one in records
        ]
        # off the loop: megabytes take a while
        parameters = {"records": await asyncio.to_thread(json.dumps, rows), "keep": self._keep_records}
        return await self._ask(lambda client: _result(client.rpc("add_entity_records", parameters)), int)

    async def newest(self, entity: str, limit: int) -> list[Record]:
        def call(client: AsyncClient) -> Awaitable[Any]:
            query = client.table(RECORDS).select("entity,id,time,data").eq("entity", entity)
            return _result(query.order("time", desc=True).order("number", desc=True).limit(limit))

        return await self._ask(call, _records)

    async def add_outcomes(self, outcomes: Sequence[Outcome]) -> int:
        rows = [
            {
                "model": one.model,
                "version": one.version,
                "id": one.id,
                "time": one.time.isoformat(),
                "instance": one.instance,
                "outcome": one.outcome,
                "prediction": one.prediction,
            }
            for one in outcomes
        ]
        parameters = {"outcomes": json.dumps(rows), "keep": self._keep_outcomes}
        return await self._ask(lambda client: _result(client.rpc("add_model_outcomes", parameters)), int)

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        return await self._pages(lambda client: client.table(OUTCOMES).select("*").eq("model", model), limit, _outcome)

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        def select(client: AsyncClient) -> Any:
            query = client.table(OUTCOMES).select("number,outcome,prediction").eq("model", model)
            return query.eq("version", version).not_.is_("prediction", "null")

        return await self._pages(select, limit, lambda row: Judged(row["outcome"], row["prediction"]))

    async def _pages(self, select: Callable[[AsyncClient], Any], limit: int, read: Callable[[Any], T]) -> list[T]:
        """The last `limit` rows by their number."""
        found: list[T] = []
        before: int | None = None
        while len(found) < limit:
            page = min(PAGE, limit - len(found))
            numbered = await self._page(select, page, before, read)
            found += [one for _, one in numbered]
            if len(numbered) < page:
                break
            before, _ = numbered[-1]
        return found

    async def _page(
        self, select: Callable[[AsyncClient], Any], page: int, before: int | None, read: Callable[[Any], T]
    ) -> list[tuple[int, T]]:
        def call(client: AsyncClient) -> Awaitable[Any]:
            query = select(client) if before is None else select(client).lt("number", before)
            return _result(query.order("number", desc=True).limit(page))

        return await self._ask(call, lambda rows: [(row["number"], read(row)) for row in rows])

    async def probe(self) -> None:
        await self.add_records([])

    async def close(self) -> None:
        if self._process != os.getpid():
            return
        if self._calls:
            await asyncio.wait(self._calls, timeout=DEADLINE_SECONDS)
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)  # of the next event loop, should there be one
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _ask(self, call: Call, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer. Raises StoreUnavailable."""
        self._be_of_this_process()
        period = self._breaker.begin()
        if period is None:
            raise StoreUnavailable("Supabase is away")
        task = asyncio.get_running_loop().create_task(
            self._attempt(call, read, period), context=contextvars.copy_context()
        )
        self._calls.add(task)
        task.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError as error:
            self._note_failure(period, "it takes too long")
            raise StoreUnavailable("Supabase is away: it takes too long") from error

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more

    async def _attempt(self, call: Call, read: Callable[[Any], T], period: int) -> T:
        try:
            async with self._place():
                result = read(await call(await self._connected()))
        except BROKEN as error:
            reason = _reason(error)
            self._note_failure(period, reason)
            raise StoreUnavailable(f"Supabase is away: {reason}") from error
        except BaseException:
            self._breaker.abandoned(period)
            raise
        if self._breaker.succeeded(period):
            log.info("Supabase is back")
        return result

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of those that call at once. Raises StoreUnavailable: those who have a place say whether all is well."""
        places = self._places
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                await places.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("Supabase is busy") from error
        try:
            yield
        finally:
            places.release()

    def _note_failure(self, period: int, reason: str) -> None:
        if self._breaker.failed(period):
            log.warning("Supabase is away", reason=reason)

    def _be_of_this_process(self) -> None:
        process = os.getpid()
        if self._process != process:
            # kept, not closed: connections from before a fork belong to the process that made them
            self._inherited = [self._client, self._http, self._calls, self._inherited]
            self._client = self._http = None
            self._calls = set()
            self._places = asyncio.Semaphore(CALLS_AT_ONCE)
            self._process = process

    async def _connected(self) -> AsyncClient:
        if self._client is None:
            self._http = self._http or httpx.AsyncClient(timeout=TIMEOUT, limits=LIMITS, verify=self._certificates)
            options = AsyncClientOptions(
                httpx_client=self._http,
                postgrest_client_retry=False,
                auto_refresh_token=False,
                persist_session=False,
            )
            self._client = await acreate_client(self._url, self._key, options=options)
        return self._client


async def _result(query: Any) -> Any:
    return (await query.execute()).data


def _reason(error: Exception) -> str:
    """Its kind and code: its text may quote the address, or what was sent."""
    return f"{type(error).__name__} {error.code}" if isinstance(error, APIError) else type(error).__name__


def _records(rows: Any) -> list[Record]:
    return [Record(row["entity"], row["id"], _time(row["time"]), _values(row["data"])) for row in rows]


def _values(data: dict[str, Any]) -> dict[str, Value]:
    """As they were sent: PostgreSQL gives large numbers without their exponent, so that they look whole."""
    return {name: float(value) if _is_large(value) else value for name, value in data.items()}


def _is_large(value: Any) -> bool:
    return type(value) is int and abs(value) > MAX_INTEGER


def _outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(
        model=row["model"],
        version=row["version"],
        id=row["id"],
        time=_time(row["time"]),
        instance=row["instance"],
        outcome=row["outcome"],
        prediction=row["prediction"],
    )


def _time(text: str) -> datetime:
    return in_utc(datetime.fromisoformat(text))
