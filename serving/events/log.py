"""A log of events with ids that grow: who knows the last id that they saw misses nothing and sees nothing twice.

An id is the millisecond in which the event was told, times 2**20, plus a count. So ids grow also when a log is lost and
begun anew, and nobody takes the events of one log for those of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
    """Events in the order of their ids, and the span that the log had when they were read: floor < id <= latest."""

    events: list[Event]
    floor: int
    latest: int

    def is_gap(self, after: int) -> bool:
        """Whether events after that id may be missing from the log. Nothing is missing for who begins with 0."""
        return after > 0 and not self.floor <= after <= self.latest


class EventLog(Protocol):
    """Shared like the store of jobs. Every method raises StoreUnavailable."""

    async def append(self, topic: str, kind: str, data: bytes) -> int:
        """Tell an event; gives its id. The oldest are forgotten when there are too many."""
        ...

    async def read(self, topic: str | None, after: int, limit: int) -> Page:
        """The first `limit` events of a topic, or of all, with an id above `after`; fewer means that there are no more.

        With a limit of 0 only the span is read.
        """
        ...

    async def wait(self, after: int) -> None:
        """Come back soon after there is an event with an id above `after`, or after some seconds without one."""
        ...

    async def prune(self, older_than: float) -> int:
        """Forget what was told more than `older_than` seconds ago; gives how many events that were."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


def first_id(milliseconds: int) -> int:
    """The smallest id of that millisecond since the epoch."""
    return milliseconds << 20
