"""The store of logged predictions: a SQLite file of this box, or Supabase. `service.shared.predictions` is it.

A row of the log is one row of a request with its answer. Rows are found by the id of their request (`get`), or page by
page in the order of their times (`find`, or `pages` for all of them).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from serving.predict.operation import Verb

PAGE_ROWS = 1000
"""Rows that `pages` reads at once."""

COLUMNS = ("model", "version", "verb", "entity", "key", "request_id")
"""Those that `Wanted` may name."""

TIME_DIGITS = 14
"""Hexadecimal digits of a time at the beginning of an id, in microseconds."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LoggedPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a request, and its answer."""

    id: str
    """Of this row alone, on all instances; ids sort by time."""
    time: datetime
    """When it was answered, in UTC, to the millisecond."""
    request_id: str
    """The client may have chosen it: several requests may have the same."""
    place: int
    """Of the row in its request, from 0."""
    key: str = ""
    """The name of the key that the request was sent with; empty for none."""
    model: str
    version: str
    verb: Verb = "predict"
    row: dict[str, Any]
    """As a client would send it; without the columns of LOG_PREDICTIONS_REDACT."""
    answer: Any
    """As the client got it; None for an explanation that would tell of a column that is left out."""
    source: str
    """Where the answer came from, as in metrics.SOURCES."""
    milliseconds: float
    """From the head of the request to its answer."""
    entity: str = ""
    """The entity whose record the row is; empty if it came in the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which rows of the log are meant: those to which all that is given applies."""

    model: str | None = None
    version: str | None = None
    verb: Verb | None = None
    entity: str | None = None
    key: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    """Rows of this time and later."""
    until: datetime | None = None
    """Rows of earlier times."""

    def bounds(self) -> tuple[str, str]:
        """The ids of the rows between `since` and `until` are between these; the second is not meant itself."""
        least = "" if self.since is None else _time_in_id(self.since)
        return least, "g" if self.until is None else _time_in_id(self.until)


EVERY_ROW = Wanted()


def make_id(microseconds: int, ring: int, position: int, place: int) -> str:
    """The id of a row: of a time since 1970, and of a record in a ring (`serving.shared.ring`)."""
    return f"{microseconds:0{TIME_DIGITS}x}{ring:08x}{position:012x}{place:05x}"


def _time_in_id(moment: datetime) -> str:
    microseconds = (moment - EPOCH) // timedelta(microseconds=1)
    return f"{max(0, microseconds):0{TIME_DIGITS}x}"


class PredictionStore(Protocol):
    """Shared by all processes that serve. Every method raises StoreUnavailable; an instance may be forked."""

    async def add(self, batch: Sequence[LoggedPrediction]) -> int:
        """Store all rows that are new, and return how many; a row whose id is there already changes nothing."""
        ...

    async def get(self, request_id: str) -> list[LoggedPrediction]:
        """All rows of the requests of this id, in the order of their times and places."""
        ...

    async def find(
        self, wanted: Wanted, limit: int, after: str = "", *, oldest_first: bool = False
    ) -> list[LoggedPrediction]:
        """At most `limit` of the wanted rows, newest first; those that come `after` the row of this id."""
        ...

    async def delete(self, wanted: Wanted) -> int:
        """Delete the wanted rows for good, and return how many; no byte of them is left in the store."""
        ...

    async def prune(self, keep_rows: int, before: datetime) -> int:
        """Delete some of the rows of times `before`, and of the oldest beyond `keep_rows`, and return how many.

        To be called until nothing is left to do: each call keeps others from writing for a moment only.
        """
        ...

    async def probe(self) -> None:
        """Raises StoreUnavailable if the store cannot be written now, even if it can be read."""
        ...

    @property
    def state(self) -> str:
        """The state of the circuit breaker, for the health check; `disabled` if there is none."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


async def pages(
    store: PredictionStore, wanted: Wanted, limit: int | None = None, *, oldest_first: bool = False
) -> AsyncIterator[list[LoggedPrediction]]:
    """The wanted rows, at most `limit`, some at a time. Raises StoreUnavailable."""
    after, left = "", limit
    while left is None or left > 0:
        asked = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
        page = await store.find(wanted, asked, after, oldest_first=oldest_first)
        if page:
            yield page
        if len(page) < asked:
            return
        after = page[-1].id
        left = None if left is None else left - len(page)
