"""Feeds: documents of rows at other addresses, polled on a schedule and kept as records.

Context: feeds are small, and arrive whole. Decision: a document is read whole, up to its `max_bytes`, and its
validators (ETag, Last-Modified) are remembered only once all of its rows are stored. Consequence: whatever fails on the
way is made good by the next poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import structlog

from serving.entities.record import KIND, Record, make_record, value_of
from serving.entities.store import BATCH, EntityStore
from serving.errors import InvalidRequest, OutboundFailed, ServingError
from serving.jobs.attempt import AttemptFailed, JobFailed, Report
from serving.jobs.csv_reader import CsvReader
from serving.jobs.job import Job, JobRequest
from serving.storage.http import Call, Outbound, Reply, http_url

log = structlog.get_logger(__name__)

POLL = "poll"
"""The operation of jobs that poll a feed."""

POLL_SECONDS = 300.0
"""A poll that takes longer is given up."""

MAX_FAULTS = 5
"""Bad rows that are described; the others are counted."""

Row = dict[str, Any]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Feed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A document of rows. `entity`, `time` and `id` name its columns, all others are values.

    Without `id`, a row is identified by its time and values. JSON is an array of objects, or an object that holds one
    under the key `rows`.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}\Z")]
    url: str
    format: Literal["json", "csv"]
    entity: str = "entity"
    time: str = "time"
    id: str = ""
    kind: Annotated[str, msgspec.Meta(pattern=rf"^{KIND.pattern}\Z")] | None = None
    """The kind of its entities."""
    rows: str = ""
    max_bytes: Positive = 4 << 20
    max_rows: Positive = 10_000

    def __repr__(self) -> str:
        return f"Feed({self.name!r})"  # its URL may hold a secret


def parse_feeds(text: str) -> tuple[Feed, ...]:
    """Feeds from a JSON array; an empty text means no feeds. Raises ValueError, which quotes nothing but names."""
    if not text:
        return ()
    try:
        feeds = msgspec.json.decode(text, type=tuple[Feed, ...])
    except msgspec.ValidationError as error:
        raise ValueError(f"must be feeds: {str(error)[:160]}") from None
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise ValueError(
            'must be a JSON array like [{"name": "prices", "url": "https://...", "format": "csv"}]'
        ) from None
    for feed in feeds:
        try:
            http_url(feed.url)
        except OutboundFailed:
            raise ValueError(f"must give {feed.name} an http or https URL") from None
    if len({feed.name for feed in feeds}) < len(feeds):
        raise ValueError("must not give two feeds the same name")
    return feeds


@dataclass(frozen=True, slots=True)
class Polled:
    """The result of a poll: rows that are records, how many of those are new, and what is wrong with the others."""

    records: int = 0
    new: int = 0
    refused: int = 0
    faults: tuple[str, ...] = ()
    unchanged: bool = False
    """The document has not changed since the last poll."""


def poll_request(feed: str) -> JobRequest:
    """The job that polls a feed."""
    return JobRequest(operation=POLL, parameters=feed.encode(), inputs=[b""])


class Poller:
    """Works on jobs that poll feeds, in one process. Building it opens nothing."""

    def __init__(self, feeds: Iterable[Feed], outbound: Outbound, store: EntityStore) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        self._outbound = outbound
        self._store = store
        self._validators: dict[str, dict[str, str]] = {}

    async def __call__(self, job: Job, _chunk: int, _data: bytes, _report: Report) -> bytes:
        """Work on a job of `poll_request`; its result is a Polled as JSON. Raises JobFailed, AttemptFailed."""
        name = job.parameters.decode()
        if name not in self._feeds:
            raise AttemptFailed(f"FEEDS does not name {name} here")
        try:
            async with asyncio.timeout(POLL_SECONDS):
                polled = await self.fetch(name)
        except (ServingError, TimeoutError) as error:
            reason = str(error) or f"it took longer than {POLL_SECONDS:g} s"
            log.warning("Feed failed", feed=name, reason=reason)
            raise JobFailed(f"feed {name}: {reason}") from error
        if polled.refused:
            log.warning("Feed has bad rows", feed=name, refused=polled.refused, faults=polled.faults)
        log.info("Feed polled", feed=name, records=polled.records, new=polled.new, unchanged=polled.unchanged)
        return msgspec.json.encode(polled)

    async def fetch(self, name: str) -> Polled:
        """Fetch a feed and store its records. Raises KeyError, OutboundFailed, InvalidRequest, StoreUnavailable."""
        feed = self._feeds[name]
        call = Call(feed.url, headers=self._validators.get(name), max_bytes=feed.max_bytes, repeatable=True)
        reply = await self._outbound.fetch(call)
        if reply.status == 304:
            return Polled(unchanged=True)
        if reply.status != 200:
            raise InvalidRequest(f"the feed's server returned status {reply.status}")
        # off the loop: megabytes of JSON take a while
        records, faults = await asyncio.to_thread(_records, feed, reply.body)
        new = 0
        for first in range(0, len(records), BATCH):
            added = await self._store.add_records(records[first : first + BATCH], feed.kind)
            new += added.stored
        self._validators[name] = _validators(reply)
        return Polled(len(records), new, len(faults), tuple(faults[:MAX_FAULTS]))


def _validators(reply: Reply) -> dict[str, str]:
    """The headers with which the next request asks only for a changed document."""
    asked = {"if-none-match": reply.headers.get("etag"), "if-modified-since": reply.headers.get("last-modified")}
    return {name: value for name, value in asked.items() if value}


def _records(feed: Feed, document: bytes) -> tuple[list[Record], list[str]]:
    records, faults = [], []
    for number, row in enumerate(_read_rows(feed, document), 1):
        try:
            records.append(_record(feed, row))
        except InvalidRequest as error:
            faults.append(f"row {number}: {error}")
    return records, faults


def _record(feed: Feed, row: Row | None) -> Record:
    if row is None:
        raise InvalidRequest("is not a row")
    entity, time = _text(row, feed.entity), _text(row, feed.time)
    record_id = _text(row, feed.id) if feed.id else None
    own = {feed.entity, feed.time, feed.id}
    values = {name: value for name, value in row.items() if name not in own}
    if feed.format == "csv":
        values = {name: value_of(text) for name, text in values.items()}
    return make_record(entity, values, time, record_id)


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidRequest(f"{column} is missing")
    return str(value)


def _read_rows(feed: Feed, document: bytes) -> list[Row | None]:
    """At most `max_rows` rows; None in place of one that is malformed. Raises InvalidRequest for the whole document."""
    rows = _read_json(feed, document) if feed.format == "json" else _read_csv(document)
    if len(rows) > feed.max_rows:
        raise InvalidRequest(f"the document has {len(rows)} rows, more than {feed.max_rows}")
    return rows


def _read_json(feed: Feed, document: bytes) -> list[Row | None]:
    try:
        content = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the document is not JSON") from None
    if feed.rows and isinstance(content, dict):
        content = content.get(feed.rows)
    if not isinstance(content, list):
        raise InvalidRequest("the document is not an array of rows")
    return [row if isinstance(row, dict) else None for row in content]


def _read_csv(document: bytes) -> list[Row | None]:
    table = CsvReader(max_row_bytes=len(document), skip_empty=True).rows([document])
    names = next(table, [])
    if len(set(names)) < len(names) or not names:
        raise InvalidRequest("the first line must name the columns, each once")
    return [dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None for cells in table]
