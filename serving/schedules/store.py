"""What remembers schedules: when each fired last, how often, and who is at it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleCounts:
    """Firings by what became of them: each is fired, missed, coalesced or prevented."""

    fired: int = 0
    missed: int = 0
    """Nobody was there in time."""
    coalesced: int = 0
    """A later one that came in time stands for it."""
    overlaps_prevented: int = 0
    """The one before was not finished yet."""
    failed: int = 0
    """Of those that fired: the scheduler's own attempt at it raised an error. A job's failure is the job's."""
    overlap_incidents: int = 0
    """Two at a time, which must not be; as far as it was noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a schedule. Times are in seconds since the epoch."""

    last: float
    """Firings up to this time are settled. Of one that is new: when it was first seen."""
    job: str = ""
    """The id of the last job, for an action that is one."""
    counts: ScheduleCounts = field(default_factory=ScheduleCounts)


class ScheduleStore(Protocol):
    """Shared by all schedulers, and with Redis by all instances. Every method raises StoreUnavailable.

    Whoever holds a schedule alone decides about its firings; a hold runs out if its owner dies.
    """

    async def hold(self, name: str, owner: str, seconds: float, now: float) -> Record | None:
        """Hold a schedule for so long, also further; None while another does. A new one begins at `now`."""
        ...

    async def settle(self, name: str, owner: str, upto: float, counts: ScheduleCounts, job: str = "") -> bool:
        """Firings up to that time are settled, `counts` are to be added, and the hold is over.

        False, and nothing is changed, if the hold was lost. An empty `job` leaves the last one.
        """
        ...

    async def release(self, name: str, owner: str) -> None:
        """The hold is over, nothing is settled."""
        ...

    async def add(self, name: str, counts: ScheduleCounts) -> None:
        """Count something besides, whoever holds the schedule."""
        ...

    async def records(self) -> Mapping[str, Record]:
        """All schedules that were ever held, by name."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...


COUNTS = tuple(count.name for count in fields(ScheduleCounts))


def record_from(columns: Mapping[str, Any]) -> Record:
    """A record from a store's columns; numbers may be text, columns that it does not have are left out."""
    whole = {**columns, "counts": {name: columns[name] for name in COUNTS if name in columns}}
    return msgspec.convert(whole, Record, strict=False)
