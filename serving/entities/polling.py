"""Fetches a feed, makes records of its rows and has them kept; what is there already changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from serving.entities.feed import Feed
from serving.entities.feed_rows import Row, read_rows
from serving.entities.record import value_of
from serving.entities.store import BATCH
from serving.errors import InvalidRequest, ServingError
from serving.storage.http import Call, Outbound, Reply

log = structlog.get_logger(__name__)

MOST_FAULTS = 5
"""That are named; the others are counted."""

R = TypeVar("R")

MakeRecord = Callable[[str, dict[str, Any], str, str | None], R]
"""Of entity, values, time and id, the last None if the feed has none. Raises InvalidRequest."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What came of it: rows that are records, those of them that are new, and what is wrong with the others."""

    records: int = 0
    new: int = 0
    refused: int = 0
    faults: tuple[str, ...] = ()
    unchanged: bool = False
    """The other side says that nothing has changed since the last time."""


class Poller(Generic[R]):
    """The feeds of one process. Building it opens nothing.

    Context: feeds are small, and come as a whole. Decision: a document is read whole, up to its `max_bytes`, and what
    it is known by (ETag, Last-Modified) is remembered only when all of its rows are kept. Consequence: whatever goes
    wrong on the way is made good by the next poll.
    """

    def __init__(
        self,
        feeds: Iterable[Feed],
        outbound: Outbound,
        make: MakeRecord[R],
        store: Callable[[Sequence[R]], Awaitable[int]],
    ) -> None:
        """`store` keeps records, all or none, and gives how many of them are new."""
        self._feeds = {feed.name: feed for feed in feeds}
        self._outbound = outbound
        self._make = make
        self._store = store
        self._known: dict[str, dict[str, str]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the feeds there are."""
        return tuple(self._feeds)

    async def poll(self, name: str) -> None:
        """Fetch a feed and log what came of it, whatever that is: for a schedule, which comes again."""
        try:
            polled = await self.fetch(name)
        except ServingError as error:
            log.warning("Feed failed", feed=name, reason=str(error))
            return
        told = {"records": polled.records, "new": polled.new, "unchanged": polled.unchanged}
        if polled.refused:
            log.warning("Feed has bad rows", feed=name, refused=polled.refused, faults=polled.faults)
        log.info("Feed polled", feed=name, **told)

    async def fetch(self, name: str) -> Polled:
        """The same, for who wants to know. Raises KeyError, OutboundFailed, InvalidRequest, StoreUnavailable."""
        feed = self._feeds[name]
        call = Call(feed.url, headers=self._known.get(name), max_bytes=feed.max_bytes, repeatable=True)
        reply = await self._outbound.fetch(call)
        if reply.status == 304:
            return Polled(unchanged=True)
        if reply.status != 200:
            raise InvalidRequest(f"it is answered {reply.status}")
        # off the loop: megabytes of JSON take a while
        records, faults = await asyncio.to_thread(self._records, feed, reply.body)
        new = 0
        for first in range(0, len(records), BATCH):
            new += await self._store(records[first : first + BATCH])
        self._known[name] = conditions(reply)
        return Polled(len(records), new, len(faults), tuple(faults[:MOST_FAULTS]))

    def _records(self, feed: Feed, document: bytes) -> tuple[list[R], list[str]]:
        records, faults = [], []
        for number, row in enumerate(read_rows(feed, document), 1):
            try:
                records.append(self._record(feed, row))
            except InvalidRequest as error:
                faults.append(f"row {number}: {error}")
        return records, faults

    def _record(self, feed: Feed, row: Row | None) -> R:
        if row is None:
            raise InvalidRequest("is no row")
        entity, time = _text(row, feed.entity), _text(row, feed.time)
        record_id = _text(row, feed.id) if feed.id else None
        own = {feed.entity, feed.time, feed.id}
        values = {name: value for name, value in row.items() if name not in own}
        if feed.format == "csv":
            values = {name: value_of(text) for name, text in values.items()}
        return self._make(entity, values, time, record_id)


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidRequest(f"{column} is missing")
    return str(value)


def conditions(reply: Reply) -> dict[str, str]:
    """The headers by which the other side can tell that nothing has changed since this reply."""
    asked = {"if-none-match": reply.headers.get("etag"), "if-modified-since": reply.headers.get("last-modified")}
    return {name: value for name, value in asked.items() if value}
