"""The event log: ids grow, so a client that knows the last id it saw misses nothing and sees nothing twice.

An id is the millisecond in which the event was appended, times 2**20, plus a count. Ids therefore grow even when a log
is lost and begun anew, and the events of one log are never taken for those of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from serving.errors import StoreUnavailable

log = structlog.get_logger(__name__)

MAX_EVENTS = 10_000

RESET = "reset"
"""The kind of an event that is in no log: it tells a client that events are missing before the next one."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a topic, a job for example."""

    id: int
    topic: str
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Events in the order of their ids, and the span of the log when they were read: floor < id <= latest."""

    events: list[Event]
    floor: int
    latest: int

    def is_gap(self, after: int) -> bool:
        """Return whether events after that id may be missing. A client that begins with 0 misses nothing."""
        return after > 0 and not self.floor <= after <= self.latest


class EventLog(Protocol):
    """Kept where the jobs are kept. Every method raises StoreUnavailable."""

    async def append(self, topic: str, kind: str, data: bytes) -> int:
        """Append an event and return its id. The oldest events are forgotten when there are too many."""
        ...

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        """Read the first `limit` events of a topic, or of all topics, with an id above `after`.

        Fewer events mean that there are no more. With a limit of 0 only the span is read.
        """
        ...

    async def wait(self, after: int) -> None:
        """Return soon after there is an event with an id above `after`, or after some seconds without one."""
        ...

    async def prune(self, older_than: float) -> int:
        """Forget the events appended more than `older_than` seconds ago; return how many."""
        ...

    async def drop(self, topic: str) -> int:
        """Delete the events of a topic; return how many."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


async def tell(events: EventLog, topic: str, kind: str, data: bytes) -> None:
    """Append an event, or drop it if the log is unavailable: the caller works on without it."""
    try:
        await events.append(topic, kind, data)
    except StoreUnavailable as error:
        log.warning("Event dropped: event log is unavailable", topic=topic, kind=kind, error=str(error))


def first_id(milliseconds: int) -> int:
    """Return the smallest id of that millisecond since the epoch."""
    return milliseconds << 20
